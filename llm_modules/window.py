"""Which tokens enter the generator when a prompt is longer than it can hold: the last ones; the bridge reads all."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """The columns of each row that enter the generator: the end of its prompt, and all of its response.

    Nothing is lost by it: the source reads the whole prompt, and every column kept attends to all knowledge before it.
    Rows with fewer columns are padded on the left.

    Args:
        columns: `[batch, num_kept]` columns of the input, ascending in each row.
        mask: `[batch, num_kept]` bool, False on padding.
        length: Columns of the input.
    """

    columns: Tensor
    mask: Tensor
    length: int

    @classmethod
    def over(cls, is_prompt: Tensor, real: Tensor, *, size: int) -> "Window | None":
        """The window of `size` prompt tokens a row, or `None` if no prompt is longer.

        Args:
            is_prompt: `[batch, length]` bool, one run per row.
            real: `[batch, length]` bool, False on padding.
            size: Most prompt tokens that enter the generator.
        """
        to_the_end = is_prompt.flip(-1).cumsum(-1).flip(-1)
        kept = real & ~(is_prompt & (to_the_end > size))
        if torch.equal(kept, real):
            return None
        num_kept = int(kept.sum(-1).max())
        columns = kept.long().argsort(dim=-1, stable=True)[:, -num_kept:]  # those left out come first
        return cls(columns, kept.gather(1, columns), kept.shape[1])

    @property
    def num_left_out(self) -> int:
        """How many columns fewer the generator sees."""
        return self.length - self.columns.shape[1]

    def take(self, states: Tensor) -> Tensor:
        """The columns kept of `[batch, length, d]`: `[batch, num_kept, d]`."""
        return states.gather(1, self._index(states))

    def put_back(self, states: Tensor) -> Tensor:
        """`[batch, num_kept, d]` in their places among all columns, `[batch, length, d]`; zeros elsewhere."""
        states = states * self.mask[..., None]
        whole = states.new_zeros(states.shape[0], self.length, states.shape[2])
        return whole.scatter(1, self._index(states), states)

    def lacks(self, wanted: Tensor) -> bool:
        """Whether any of the `wanted` columns `[batch, length]` (bool) does not enter the generator."""
        kept = torch.zeros_like(wanted).scatter(1, self.columns, self.mask)
        return bool((wanted & ~kept).any())

    def _index(self, states: Tensor) -> Tensor:
        return self.columns[..., None].expand(-1, -1, states.shape[-1])
