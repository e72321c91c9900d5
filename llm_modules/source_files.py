"""Where a source's weights are: built in, in a folder, in a GGUF file, or on the hub; and what the files say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm_modules.default_source import built_in_source, converted_gguf, is_built_in
from llm_modules.errors import UserError
from llm_modules.fingerprint import stored_tensors, weight_files
from llm_modules.hub import fetch

FILES_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.txt")
MODEL_FILES = ("*.safetensors", *FILES_BESIDE_WEIGHTS)


def resolve_folder(source: str | Path, revision: str | None = None, *, files: Sequence[str] = MODEL_FILES) -> Path:
    """The local folder that holds a source's weights, fetched or converted first where needed.

    Args:
        source: Where it is.
        revision: Branch, tag or commit on the hub.
        files: Patterns of what is fetched from the hub.

    Raises:
        UserError: If there is no such folder, file, built-in name or reachable hub id.
    """
    if is_built_in(str(source)):
        return built_in_source(str(source))
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return converted_gguf(path)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1:
        raise UserError(f"source={str(source)!r} is no folder and no .gguf file; give a model folder or a hub id")
    # top-level files only: some repositories keep other formats in sub-folders
    return fetch(
        str(source),
        revision=revision,
        otherwise="give the folder, or use source='default', which needs no hub",
        allow_patterns=list(files),
        ignore_patterns=["*/*"],
    )


def stored_config(folder: Path) -> PreTrainedConfig:
    """Configuration of a stored model.

    Raises:
        UserError: If it is damaged, or needs code that came with it.
    """
    return _stored(AutoConfig, folder, f"{folder}/config.json")


def stored_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a stored model.

    Raises:
        UserError: If it is damaged, or needs code that came with it.
    """
    return _stored(AutoTokenizer, folder, f"the tokenizer in {folder}")


def _stored(kind: Any, folder: Path, what: str) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file fails in as many ways as there are damages
        raise UserError(f"{what} cannot be read: {error}; fetch or save it again") from error


def stored_tables(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Configuration, embedding table, output matrix and bias of a stored model, without loading its body."""
    config = stored_config(folder)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    names = {id(parameter): name for name, parameter in skeleton.named_parameters()}
    head, table = skeleton.get_output_embeddings(), skeleton.get_input_embeddings()
    wanted = {
        "embedding": names[id(table.weight)],
        "output_matrix": names[id(head.weight)],
        "output_bias": names.get(id(getattr(head, "bias", None))),
    }
    found: dict[str, Any] = dict.fromkeys(wanted)
    body_prefix = f"{skeleton.base_model_prefix}."  # some checkpoints name the body's weights without it
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            held = set(stored.keys())
            for role, name in wanted.items():
                for stored_name in {name, name and name.removeprefix(body_prefix)} & held:
                    found[role] = stored.get_tensor(stored_name).to(dtype)
    if found["output_matrix"] is None and config.get_text_config().tie_word_embeddings:
        found["output_matrix"] = found["embedding"]  # stored once
    for role, name in wanted.items():
        if name is not None and found[role] is None:
            raise UserError(f"{folder} lacks its {role.replace('_', ' ')} ({name}); fetch or save it again")
    return config, found


def stored_folder(model: PreTrainedModel) -> Path | None:
    """Folder of a loaded model's stored weights, if they are still what the model holds."""
    name = model.name_or_path
    if not name:
        return None
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(
                snapshot_download(name, revision=getattr(model.config, "_commit_hash", None), local_files_only=True)
            )
        except Exception:  # noqa: BLE001 - not in the hub's cache: a model that lives in memory only
            return None
    if not list(folder.glob("*.safetensors")):
        return None
    held = model.state_dict()
    unseen = held.keys() - set(model.all_tied_weights_keys)
    for stored_name, stored in stored_tensors(weight_files(folder)):
        name = stored_name if stored_name in held else f"{model.base_model_prefix}.{stored_name}"
        if name not in held:
            continue  # a buffer of older versions
        if not torch.equal(held[name].cpu(), stored.to(held[name].dtype)):
            return None
        unseen.discard(name)
    return None if unseen else folder


def source_identity(source: str | Path) -> str:
    """What a model saves as its source's id: a path in full, so that it holds from any working folder."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() and not is_built_in(str(source)) else str(source)


def hub_commit(folder: Path | None) -> str | None:
    """The hub's commit, which names the snapshot folder; `None` for any other folder."""
    return folder.name if folder is not None and folder.parent.name == "snapshots" else None
