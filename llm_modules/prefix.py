"""What many texts begin with, read once and shared by all of them."""

import copy
from collections.abc import Sequence

from transformers import DynamicCache


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Count the leading tokens that all rows share (a system prompt, say), leaving at least one to each."""
    shortest = min(map(len, rows), default=1) - 1
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """A copy of the cache of one row, for so many rows; the original stays as it is."""
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(rows)
    return own
