"""States as they are stored: floats of three widths, or int8 with a scale per token and tap."""

import zlib
from typing import Literal

import torch
from torch import Tensor

from llm_modules.errors import UserError

StoredDtype = Literal["float32", "bfloat16", "float16", "int8"]


def encode(states: Tensor, dtype: StoredDtype) -> tuple[Tensor, Tensor | None]:
    """States `[tokens, taps, d_source]` to what is stored, and for int8 the scales `[tokens, taps]`.

        int8:  stored = round(state / scale),  scale = max |state| / 127 over the token's width

    Raises:
        UserError: If a state is infinite or no number, or becomes so in this dtype.
    """
    if not states.isfinite().all():
        raise UserError(
            "the source's states hold infinity or NaN, so nothing could be learned from them; choose another "
            "model.source_dtype, or other taps"
        )
    if dtype == "int8":
        scales = states.float().abs().amax(-1) / 127
        divisors = scales.masked_fill(scales == 0, 1).unsqueeze(-1)
        return (states.float() / divisors).round().to(torch.int8), scales
    stored = states.to(getattr(torch, dtype))
    if not stored.isfinite().all():
        raise UserError(
            f"a state of {states.abs().max():.0f} is beyond {dtype}; choose bfloat16, int8 or float32 as the store's "
            "dtype"
        )
    return stored, None


def decode(stored: Tensor, scales: Tensor | None) -> Tensor:
    """What is stored, `[tokens, taps, d_source]`, as floats to compute with."""
    return stored if scales is None else stored.float().mul_(scales.unsqueeze(-1))


def bytes_per_token(dtype: StoredDtype, *, num_taps: int, d_source: int) -> int:
    """What a token takes on the disk."""
    return num_taps * (d_source * getattr(torch, dtype).itemsize + (4 if dtype == "int8" else 0))


def checksum(*parts: Tensor | bytes | None) -> int:
    """CRC-32 of all bytes in order."""
    total = 0
    for part in parts:
        if isinstance(part, Tensor):
            total = zlib.crc32(part.contiguous().view(-1).view(torch.uint8).numpy().data, total)
        elif part is not None:
            total = zlib.crc32(part, total)
    return total
