"""FLOPs of a piece of work, counted by torch while it runs."""

import time
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from llm_modules.compare.budget import Cost


def counted(work: Callable[[], Any]) -> Cost:
    """What a piece of work costs: done once under torch's count of FLOPs, which slows it down, and once timed."""
    with FlopCounterMode(display=False, custom_mapping=_ALSO_COUNTED) as counter:
        work()
    wait_for_device()
    start = time.perf_counter()
    work()
    wait_for_device()
    return Cost(time.perf_counter() - start, counter.get_total_flops())


def wait_for_device() -> None:
    """Until an accelerator, where there is one, has done what it was given."""
    if torch.accelerator.is_available():  # which goes on by itself
        torch.accelerator.synchronize()


def _in_place(_: Any, a: Any, b: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *_rest: Any, **__: Any) -> int:
    return int(2 * prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1]))


_ATTENTIONS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
# what torch's own count leaves out, or (2.11, on a GPU) refuses: attention of more query heads than key heads
_ALSO_COUNTED = {torch.ops.aten.addmm_: _in_place} | {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{suffix}"): formula
    for kind in _ATTENTIONS
    for suffix, formula in (("", _attention), ("_backward", _attention_backward))
}
