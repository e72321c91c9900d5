"""Whether the source's weights that lie in a checkpoint are those of a given source."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llm_modules.errors import UserError
from llm_modules.source import Source

CHUNK = 2**22  # numbers compared at once, so that comparing needs no second copy


def compare_source(checkpoint: Path, theirs: Mapping[str, Tensor], source: Source) -> None:
    """Say that the source is the one whose weights the checkpoint carries, or that it carries none.

    A tied head may be left out, as files leave it; where it is there, it must equal the given source's.

    Raises:
        UserError: If any tensor differs by more than the rounding of its dtype, or is on one side only.
    """
    if not theirs:
        print(f"{checkpoint} holds no source weights, so nothing shows whether it was trained with {name_of(source)}")
        return
    if source.model is None:
        raise UserError("the source was loaded without its body and cannot be compared; load it whole")
    ours, tied = source.model.state_dict(), source.model.all_tied_weights_keys
    names = [name for name in {**ours, **theirs} if name in theirs or name not in tied]
    gaps = {name: _gap(theirs.get(name), ours.get(name)) for name in names}
    differing = [name for name in names if gaps[name] > 0]
    if not differing:
        print(f"all {len(names)} tensors of the source in {checkpoint} are those of {name_of(source)}")
        return
    first, largest = differing[0], max(differing, key=lambda name: gaps[name])
    raise UserError(
        f"{len(differing)} of {len(names)} tensors of the source in {checkpoint} are not those of {name_of(source)}: "
        f"first {first} ({_describe(gaps[first])}), most of all {largest} ({_describe(gaps[largest])}); give the "
        "source that the checkpoint was trained with"
    )


def name_of(source: Source) -> str:
    """What to call a source in a message."""
    return source.source_id or "the source given"


def _gap(theirs: Tensor | None, ours: Tensor | None) -> float:
    """Largest difference of two stored copies, in the coarser dtype of both; infinite if they cannot be compared."""
    if theirs is None or ours is None or theirs.shape != ours.shape:
        return torch.inf
    if not (theirs.is_floating_point() and ours.is_floating_point()):
        return 0.0 if theirs.dtype == ours.dtype and torch.equal(theirs, ours.cpu()) else torch.inf
    kinds = [torch.finfo(tensor.dtype) for tensor in (theirs, ours)]
    coarser = max((theirs.dtype, ours.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    # next to zero, fp16 rounds away what bf16 can tell apart
    slack = 0.0 if theirs.dtype == ours.dtype else max(kind.smallest_normal * kind.eps for kind in kinds)
    largest = 0.0
    for one, other in zip(theirs.reshape(-1).split(CHUNK), ours.reshape(-1).split(CHUNK), strict=True):
        difference = one.to(coarser).float() - other.to("cpu", coarser).float()
        largest = max(largest, difference.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max().item())
    return largest if largest > slack else 0.0


def _describe(gap: float) -> str:
    return "on one side only, of another shape, or not finite" if gap == torch.inf else f"by up to {gap:.2g}"
