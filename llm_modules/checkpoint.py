"""Read a PyTorch checkpoint that others made: tensors only, no code, and mapped from the file rather than copied."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_modules.errors import MissingFileError, UserError

ZIP = b"PK\x03\x04"  # how files of torch >= 1.6 begin; older ones cannot be mapped
DISTRIBUTED = "module."  # what DistributedDataParallel puts before every name


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of a checkpoint, and the names of what else the file holds.

    Takes `{"model_state_dict": {...}, ...}` and a bare state dict; where every name begins with `module.`, names lose
    it. The tensors are views of the file, read as they are used: a large checkpoint takes no memory of its own.

    Raises:
        UserError: If there is no such file, it is cut off or no checkpoint, or it holds anything but tensors.
    """
    held = _load(path)
    if not isinstance(held, dict):
        raise UserError(f"{path} holds a {type(held).__name__}, not a checkpoint; give the file that training saved")
    weights, others = held, []
    if "model_state_dict" in held:
        weights = held["model_state_dict"]
        others = sorted(str(name) for name in held if name != "model_state_dict")
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{path} holds no tensors in its state dict; give the file that training saved")
    strange = [f"{name} ({_kind(value)})" for name, value in weights.items() if not _is_plain(name, value)]
    if strange:
        raise UserError(
            f"{path} holds what is no plain tensor under {', '.join(strange)}; give a file with 'model_state_dict' or "
            "a bare state dict"
        )
    if all(name.startswith(DISTRIBUTED) for name in weights):
        weights = {name.removeprefix(DISTRIBUTED): weight for name, weight in weights.items()}
    return dict(weights), others


def _load(path: Path) -> Any:
    if not path.exists():
        raise MissingFileError(f"the checkpoint {path} is not there; check the path (relative to {Path.cwd()})")
    if not path.is_file():
        raise UserError(f"{path} is no file; give the checkpoint itself, for example {path}/best_model_checkpoint.pth")
    try:
        with path.open("rb") as file:
            mapped = file.read(len(ZIP)) == ZIP
        if mapped:
            _refuse_compressed(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on how to load what is refused here
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are damages
        raise UserError(f"{path} {_explain(error)}") from error
    if not mapped:
        print(f"{path} is of the old kind that cannot be mapped: it was read into memory as a whole")
    return held


def _refuse_compressed(path: Path) -> None:
    """Torch packs without compression; what is compressed may come to far more than the file's size."""
    with zipfile.ZipFile(path) as packed:
        if any(part.compress_type != zipfile.ZIP_STORED for part in packed.infolist()):
            raise UserError(f"{path} is compressed, which torch.save never does; give the file as it was saved")


def _explain(error: Exception) -> str:
    """Say what is wrong with the file, and what to do, in place of torch's advice."""
    said = str(error).rpartition("WeightsUnpickler error: ")[2]
    code = re.search(r"GLOBAL (\S+)", said)
    if code or "unrecognized function" in said or "only create new object" in said or "Can only build" in said:
        return (
            f"holds code or objects beside its tensors{f' ({code[1]})' if code else ''}; nothing of it was run. If you "
            "trust who made it, save its tensors alone: torch.save({'model_state_dict': torch.load(FILE, "
            "weights_only=False)['model_state_dict']}, 'tensors.pth'), and give that file"
        )
    first_line = next(iter(said.strip().splitlines()), "")
    return f"cannot be read ({type(error).__name__}: {first_line}); it is no PyTorch checkpoint, cut off or damaged"


def _is_plain(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _kind(value: Any) -> str:
    return f"{value.layout} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
