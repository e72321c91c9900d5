"""Keys and values of answers that are written side by side; rows join and leave between tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache

from llm_modules.growing import GrowingLayer


@dataclass
class Columns:
    """Layers of caches whose columns stand for the same tokens; rows are padded on the left.

    A row that joins or leaves costs a copy of what is there. A token costs nothing beyond its own keys and values: no
    row is taken apart or put together between tokens.

    Args:
        layers: Of one cache or several, keys and values `[rows, heads, width, head_width]`.
        mask: `[rows, width]`, 1 where there is a token, 0 on padding.
    """

    layers: list[GrowingLayer]
    mask: Tensor

    @classmethod
    def of(cls, caches: Iterable[Cache], mask: Tensor) -> Self:
        """Of all layers that hold something."""
        return cls([layer for cache in caches for layer in cache.layers if layer.is_initialized], mask)

    @property
    def can_join(self) -> bool:
        """Whether other rows can be padded to these; a sliding window has forgotten where it stands."""
        return all(type(layer) is GrowingLayer for layer in self.layers)

    def add_column_(self) -> None:
        """Make room in the mask for a token a row; its keys and values come with the forward."""
        self.mask = F.pad(self.mask, (0, 1), value=1)

    def join_(self, other: Self) -> None:
        """Take in the rows of another, below these."""
        width, coming = self.mask.shape[1], other.mask.shape[1]
        left, left_of_other = max(coming - width, 0), max(width - coming, 0)
        self.mask = torch.cat([F.pad(self.mask, (left, 0)), F.pad(other.mask, (left_of_other, 0))])
        for layer, coming_layer in zip(self.layers, other.layers, strict=True):
            layer.join_(coming_layer, left=left, left_of_other=left_of_other)

    def keep_(self, rows: Sequence[int]) -> None:
        """Let the other rows go, and columns that are padding in all that stay."""
        chosen = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[chosen]
        first = int(mask.long().argmax(-1).min())  # the first real column of the longest row
        self.mask = mask[:, first:]
        for layer in self.layers:
            if type(layer) is GrowingLayer:
                layer.keep_(chosen, first=first)
            else:
                layer.keys, layer.values = layer.keys[chosen], layer.values[chosen]

    def repeat_(self, times: int) -> None:
        """Each row so many times."""
        self.mask = self.mask.repeat_interleave(times, 0)
        for layer in self.layers:
            layer.batch_repeat_interleave(times)
