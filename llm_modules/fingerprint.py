"""A digest of model weights as they are stored: the same whatever dtype they are loaded in."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from llm_modules.checksums import parse_json, read_json, write_json
from llm_modules.errors import UserError
from llm_modules.files import cache_folder

# weights of equal shapes mean something else under other choices: a changed one must not load silently
COMBINED_CHOICES = (
    *("visibility", "head", "start", "taps", "generator_window", "num_heads", "generator", "source_fingerprint"),
)
LATER_CHOICES = {"placement": "front", "interleave_every": None}  # what folders without them mean


def fingerprint_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of names, dtypes, shapes and bytes; the order does not matter."""
    lines = []
    for name, tensor in tensors:
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        lines.append(f"{name} {tensor.dtype} {list(tensor.shape)} {hashlib.blake2b(flat.numpy().data).hexdigest()}")
    return hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=16).hexdigest()


def fingerprint_model(model: PreTrainedModel) -> str:
    """Digest of a model that lives in memory only; tied copies count once, as in a stored file."""
    tied = set(model.all_tied_weights_keys)
    return fingerprint_tensors((name, tensor) for name, tensor in model.state_dict().items() if name not in tied)


def fingerprint_combined(folder: Path) -> str:
    """Digest of a saved combined model: its weights, and the choices that say how to use them."""
    fields = json.loads((folder / "config.json").read_text())
    chosen = {name: fields.get(name) for name in COMBINED_CHOICES}
    chosen |= {name: fields[name] for name, earlier in LATER_CHOICES.items() if fields.get(name, earlier) != earlier}
    choices = json.dumps(chosen, sort_keys=True)
    weights = fingerprint_tensors(stored_tensors(weight_files(folder)))
    return hashlib.blake2b(f"{weights} {choices}".encode(), digest_size=16).hexdigest()


def fingerprint_folder(folder: Path) -> str:
    """Digest of the safetensors files of a folder; kept in the cache until one of them changes."""
    files = weight_files(folder)
    state = {str(file.resolve()): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    key = hashlib.blake2b(json.dumps(state, sort_keys=True).encode(), digest_size=16).hexdigest()
    known = cache_folder() / "fingerprints" / key
    with suppress(FileNotFoundError, UserError):  # a damaged one is made again
        return str(read_json(known)["fingerprint"])
    digest = fingerprint_tensors(stored_tensors(files))
    write_json(known, {"fingerprint": digest})
    return digest


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        UserError: If there is none, or an index of them names what is not there.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors file; point to a model folder with safetensors weights")
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(parse_json(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} cannot be read ({error}); fetch or save the folder again") from None
        if outside := named - {file.name for file in files}:  # a path, which nothing here has checked
            raise UserError(
                f"{index} names {min(map(str, outside))}, which is not in its folder; fetch or save it again"
            )
    return files


def stored_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of safetensors files, one at a time.

    Raises:
        UserError: If a file is cut off or no safetensors file.
    """
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a dict
                    yield name, stored.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} cannot be read ({error}); it is cut off or damaged: fetch or save it again"
            ) from error
