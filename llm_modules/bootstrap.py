"""Intervals for means and their differences, by drawing the problems anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NUM_DRAWS = 2000
DRAWN_AT_ONCE = 2**22  # counts held: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def as_dict(self) -> dict:
        """For JSON."""
        return {"value": self.value, "interval": [self.low, self.high]}


def paired(ones: Mapping[int, Sequence[float]], others: Mapping[int, Sequence[float]]) -> Estimate | None:
    """How much more the ones have than the others on the same problems, the mean over the seeds that both have.

    Args:
        ones: By seed, a figure for each problem.
        others: The same of what they are compared with.

    Returns:
        The difference of the means; `None` where they have no seed in common.
    """
    both = sorted(ones.keys() & others.keys())
    if not both:
        return None
    means = [np.mean([by_seed[seed] for seed in both], axis=0) for by_seed in (ones, others)]
    return bootstrap((means[0] - means[1]).tolist())


def bootstrap(totals: Sequence[float], sizes: Sequence[float] | None = None, *, seed: int = 0) -> Estimate:
    """`sum(totals) / sum(sizes)` with the interval that it has when the problems are drawn again, with replacement.

    Give differences between two models on the same problems as `totals`, and the interval is a paired one: what makes
    a problem hard for both takes no part in it.

    Args:
        totals: A figure for each problem, such as its loss summed over tokens.
        sizes: What to divide by, for each problem, such as its tokens; 1 if left out.
        seed: Decides the draws.
    """
    above = np.asarray(totals, dtype=np.float64)
    below = np.ones_like(above) if sizes is None else np.asarray(sizes, dtype=np.float64)
    numbers, n = np.random.default_rng(seed), len(above)
    step = max(1, DRAWN_AT_ONCE // n)
    drawn = []
    for first in range(0, NUM_DRAWS, step):
        times = numbers.multinomial(n, np.full(n, 1 / n), size=min(step, NUM_DRAWS - first))
        drawn.append((times @ above) / (times @ below))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    value = float(above.sum() / below.sum())
    return Estimate(value, min(value, float(low)), max(value, float(high)))  # whatever the rounding
