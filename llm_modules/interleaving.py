"""Cross-attention inside the generator: what its blocks read between one another, whatever its architecture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn

from llm_modules.blocks import blocks_of

# of the forward that is running in this thread: nothing is stored on the generator between calls
_reading: ContextVar[Callable[[int, Tensor], Tensor]] = ContextVar("reading")


def interleave_(body: nn.Module, *, every: int, first: int) -> None:
    """Let the states that enter every `every`-th block of a decoder pass a cross-attention layer: `x = ECA(p, x)`.

    Before a block, so that at least one works on what was read. Unlike in front there is no outer sum: a shut gate
    leaves the generator as it is, where doubling its states at each layer would spoil pretrained weights.

    Args:
        body: The decoder.
        every: Blocks `every`, `2 every`, … counted from 1.
        first: Index of the first such layer, as `read` counts them.
    """
    for layer, block in enumerate(blocks_of(body)[every - 1 :: every], start=first):
        block.register_forward_pre_hook(partial(_read_first, layer), with_kwargs=True)


@contextmanager
def reading(read: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Have interleaved layers read by `read(layer, x)` for as long as the block lasts."""
    token = _reading.set(read)
    try:
        yield
    finally:
        _reading.reset(token)


def _read_first(layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    read = _reading.get()
    if args:
        return (read(layer, args[0]), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": read(layer, kwargs["hidden_states"])}
