"""What training may cost, in seconds or in FLOPs, and what it has cost so far."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

from llm_modules.errors import UserError

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """So many seconds or so many FLOPs.

    Args:
        amount: How many.
        unit: Of what.
    """

    amount: float
    unit: Literal["s", "flops"]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `300s`, `5m`, `1.5h` or `2e15flops`.

        Raises:
            UserError: For anything else, and for nothing at all.
        """
        found = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?)\s*(s|m|min|h|flops)\s*", text.lower())
        if found is None or float(found[1]) <= 0:
            raise UserError(
                f"--budget {text!r} is no budget; give time, such as 300s or 5m, or work, such as 2e15flops"
            )
        if found[2] == "flops":
            return cls(float(found[1]), "flops")
        return cls(float(found[1]) * _SECONDS[found[2]], "s")

    def part(self, share: float) -> "Budget":
        """A share of it."""
        return Budget(self.amount * share, self.unit)

    def __str__(self) -> str:
        return f"{self.amount:.4g} s" if self.unit == "s" else f"{self.amount:.3g} FLOPs"


@dataclass(frozen=True)
class Cost:
    """Seconds and FLOPs of a piece of work."""

    seconds: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.flops + other.flops)

    def times(self, factor: float) -> "Cost":
        """So much of such work."""
        return Cost(self.seconds * factor, self.flops * factor)

    def of(self, budget: Budget) -> float:
        """Which share of a budget it is."""
        return (self.seconds if budget.unit == "s" else self.flops) / budget.amount


class Meter:
    """What has been spent; only what is done inside `charged` counts.

    Args:
        budget: What may be spent.
    """

    def __init__(self, budget: Budget):
        self.budget = budget
        self.cost = Cost()

    @property
    def spent(self) -> float:
        """Share of the budget."""
        return self.cost.of(self.budget)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Charge the seconds that the block takes."""
        start = time.perf_counter()
        yield
        self.cost += Cost(seconds=time.perf_counter() - start)

    def charge(self, flops: float) -> None:
        """Charge so many FLOPs."""
        self.cost += Cost(flops=flops)
