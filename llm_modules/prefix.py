"""What many texts begin with, read once and shared by all of them."""

import copy
from collections.abc import Sequence

from transformers import DynamicCache


def num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shortest = min(len(one), len(other))
    return next((index for index in range(shortest) if one[index] != other[index]), shortest)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Count the leading tokens that all rows share (a system prompt, say), leaving at least one to each."""
    if not rows:
        return 0
    # what the first and the last in order share, all between them share
    return min(num_shared(min(rows, key=tuple), max(rows, key=tuple)), min(map(len, rows)) - 1)


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """A copy of the cache of one row, for so many rows; the original stays as it is."""
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(rows)
    return own
