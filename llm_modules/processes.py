"""Several processes at one piece of work, as `torchrun` and `accelerate launch` start them; for one it is nothing."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from llm_modules.errors import SharedError, UserError
from llm_modules.machine import best_device

Value = TypeVar("Value")
_patient: list[dist.ProcessGroup] = []  # the group that waits for work

TIMEOUT_S = 600.0
DAY_S = 86_400.0  # where one process may honestly work long while others wait; a death is noticed at once all the same
LOST = (
    *("gloo", "NCCL", "onnection closed", "onnection reset", "onnection refused", "roken pipe", "imed out"),
    *("nreachable", "o route to host"),
)


def process_index() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if _together() else 0


def num_processes() -> int:
    """How many there are."""
    return dist.get_world_size() if _together() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return process_index() == 0


@contextmanager
def together(*, timeout_s: float = TIMEOUT_S, lost: str = "run the same again") -> Iterator[None]:
    """With the other processes of the same launch, if there are any; joined before, it stays so.

    Args:
        timeout_s: How long a process waits for the others before it gives up; `gathered` waits longer.
        lost: What the user is to do when they are lost.

    Raises:
        UserError: If the others cannot be found, or are lost on the way.
    """
    if _together() or not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield
        return
    who = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
    try:
        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group(backends(), timeout=timedelta(seconds=timeout_s))
        _patient.append(dist.new_group(backend="gloo", timeout=timedelta(seconds=DAY_S)))  # now, while all are there
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{who} cannot find the others ({_first_line(error)}); start all of them") from error
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in LOST):
            raise
        raise UserError(
            f"{who} has lost the others: one has ended, or did not answer for {timeout_s:g} s ({_first_line(error)}); "
            f"see what it said, and {lost}"
        ) from error
    _patient.clear()
    dist.destroy_process_group()  # after an error it might wait for those that are gone


def backends() -> str:
    """Gloo for what is on the CPU, the accelerator's own for the rest; torch alone takes the latter for all."""
    named = ["cpu:gloo"]
    if (device := best_device().type) != "cpu":
        named.append(f"{device}:{dist.get_default_backend_for_device(device)}")
    return ",".join(named)


def agree(facts: Mapping[str, Any]) -> None:
    """Make sure that all processes mean the same, before anything depends on it.

    Args:
        facts: What must be equal, by names that a user knows.

    Raises:
        UserError: Naming the first process that differs, and in what.
    """
    told = {name: str(fact) for name, fact in facts.items()}
    first, *others = gathered(told)
    for index, other in enumerate(others, start=1):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            shown = "; ".join(f"{name}: {other.get(name)}, there {first.get(name)}" for name in names[:5])
            raise SharedError(
                f"process {index} of {num_processes()} differs from process 0 ({shown}); start all with the same "
                "command, the same packages and the same files"
            )


def first_does(action: Callable[[], Value]) -> Value:
    """What process 0 gets by doing something, which the others wait for.

    Raises:
        UserError: In every process, if it does in the first.
    """
    told: list[Any] = [None, None]
    failed: UserError | None = None
    if is_first():
        try:
            told[0] = action()
        except UserError as error:
            told[1], failed = str(error), error
    if _together():
        dist.broadcast_object_list(told, src=0)
    if failed is not None:
        raise failed
    if told[1] is not None:
        raise SharedError(told[1])
    found: Value = told[0]
    return found


def gathered(value: Value) -> list[Value]:
    """The value of every process, in order; they wait for one another, however long one has to work."""
    if not _together():
        return [value]
    found: list[Any] = [None] * num_processes()
    dist.all_gather_object(found, value, group=_patient[0])
    return found


def in_any(happened: bool) -> bool:
    """Whether something happened in one of the processes."""
    if not _together():
        return happened
    flag = torch.tensor(float(happened))  # on the CPU: gloo
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes of a tensor on the CPU."""
    if _together():
        dist.all_reduce(values)
    return values


def wait_for_all() -> None:
    """Go on when all processes are here, however long one has to work."""
    gathered(None)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
