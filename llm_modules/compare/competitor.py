"""What every competitor answers: fit within a budget, loss of the right answers, answers, size."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_modules.compare.budget import Budget, Cost
from llm_modules.tasks import Problem
from llm_modules.writing import Writing


@dataclass(frozen=True)
class Fit:
    """What fitting a competitor took, and what was chosen on the way.

    Args:
        training: Of the run that counts, reading included.
        reading: What of it a source's or teacher's reading took.
        tuning: Of the trials before it.
        updates: Of the weights.
        examples: Different training examples that were seen.
        batch_size: Examples in an update.
        rate: Learning rate chosen.
        trials: Each choice tried, with what it was judged by.
        last_loss: Mean training loss of the last tenth of the updates, nats per token as training takes it.
        chosen: What else was chosen, in words.
    """

    training: Cost = field(default_factory=Cost)
    reading: Cost = field(default_factory=Cost)
    tuning: Cost = field(default_factory=Cost)
    updates: int = 0
    examples: int = 0
    batch_size: int | None = None
    rate: float | None = None
    trials: dict[str, float] = field(default_factory=dict)
    last_loss: float | None = None
    chosen: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Losses:
    """Teacher-forced loss of the right answers, a figure for each problem.

    Args:
        nats: Summed over the tokens of the response, its end included.
        tokens: Of the response.
        bytes: Of the response's text.
    """

    nats: list[float]
    tokens: list[int]
    bytes: list[int]


class Competitor(ABC):
    """One way to get answers out of the same source, data and budget."""

    num_asked: int | None = None
    """Answers at most so many test problems; `None`: all."""

    @abstractmethod
    def fit(self, budget: Budget, *, rates: Sequence[float], seed: int) -> Fit:
        """Train, or choose, within the budget.

        Args:
            budget: Of the run that counts.
            rates: Learning rates to try before; one alone is taken as it is.
            seed: Of weights, batches and draws.

        Raises:
            UserError: If the budget is too small for one step, or the competitor cannot be had here.
        """

    @abstractmethod
    def losses(self, problems: Sequence[Problem]) -> Losses:
        """Loss of the right answers."""

    @abstractmethod
    def answers(self, problems: Sequence[Problem], *, max_new_tokens: int) -> Writing:
        """Its own answers."""

    @abstractmethod
    def parameters(self) -> tuple[int, int]:
        """How many train, and how many must be resident to answer."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Keep what was trained, where there is something to keep."""
