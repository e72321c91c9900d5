"""Measured figures beside the bars they are held to, all in one file: `benchmarks/results.json`."""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.results import folder_of, table
from llm_modules.files import write_text


@dataclass(frozen=True)
class Bar:
    """A limit that a figure is held to.

    Args:
        limit: The figure must reach it.
        at_most: The figure must stay at or below the limit instead.
    """

    limit: float
    at_most: bool = False

    def holds(self, value: float) -> bool:
        """Whether a figure keeps to the limit."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.limit:g}"


@dataclass(frozen=True)
class Figure:
    """A measured figure.

    Args:
        value: The median.
        bar: What it is held to.
        spread: Lowest and highest of the repeats.
    """

    value: float
    bar: Bar
    spread: tuple[float, float]

    @classmethod
    def ratio(cls, upper: Sequence[float], lower: Sequence[float], bar: Bar) -> "Figure":
        """Quotient of two medians; its spread is that of the rounds, in which both were measured side by side."""
        rounds = [a / b for a, b in zip(upper, lower, strict=True)]
        return cls(statistics.median(upper) / statistics.median(lower), bar, (min(rounds), max(rounds)))

    @property
    def holds(self) -> bool:
        """Whether the median keeps to the bar."""
        return self.bar.holds(self.value)

    def as_json(self) -> dict[str, object]:
        """As it stands in the file, to four digits."""
        low, high = (float(f"{end:.4g}") for end in self.spread)
        value = float(f"{self.value:.4g}")
        return {"value": value, "bar": self.bar.limit, "holds": self.holds, "spread": [low, high]}


def record(figures: Mapping[str, Figure], given: argparse.Namespace) -> None:
    """Put these figures among those of other benchmarks; a quick run has a file of its own.

    Args:
        figures: By name.
        given: Options of the benchmark (`results.parser`).
    """
    file = folder_of(given) / "benchmarks" / "results.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known |= {name: figure.as_json() for name, figure in figures.items()}
    write_text(file, json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(f"bars: {file}")


def bars_table(figures: Mapping[str, Figure]) -> str:
    """A row for each figure: what it is, its spread, its bar, and whether that holds."""
    rows = [
        [
            f"`{name}`",
            f"{figure.value:.2f}",
            f"{figure.spread[0]:.2f}–{figure.spread[1]:.2f}",
            str(figure.bar),
            "yes" if figure.holds else "**no**",
        ]
        for name, figure in figures.items()
    ]
    return table(["figure", "median", "low–high", "bar", "holds"], rows)
