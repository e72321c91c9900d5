"""The last step of every model here: states to logits, by one matrix."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Readout:
    """Logits that are not computed yet: `cap(rows @ matrix.T + bias)`, so that a loss need not hold them all.

    Args:
        rows: `[..., width]` states.
        matrix: `[num_words, width]`, a row for each word.
        bias: `[num_words]`.
        cap: Logits are bent to stay below this (`cap * tanh(logits / cap)`); `None` leaves them straight.
    """

    rows: Tensor
    matrix: Tensor
    bias: Tensor | None = None
    cap: float | None = None

    def logits(self) -> Tensor:
        """All of them, `[..., num_words]`."""
        logits = F.linear(self.rows, self.matrix, self.bias)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def folding_pays(num_rows: int, *, narrow: int, wide: int) -> bool:
    """Whether a frozen matrix `[num_words, wide]` should go through the projection `narrow -> wide`, not the rows.

    Both give the same logits. Folded, each word costs `4 wide narrow` operations a step, there and back, and each row
    `6 narrow` a word, because the folded matrix has a gradient; otherwise `4 wide`.
    """
    return num_rows * (4 * wide - 6 * narrow) > 4 * wide * narrow


class FoldedHead:
    """A frozen output matrix `[V, D]` behind a projection from `d`, as one `[V, d]`: fewer bytes to read a token.

    Args:
        readout: Of the frozen matrix with the projection folded in, for any rows.
        parts: What it was made from, as it is now.
    """

    def __init__(self, readout: Readout, *parts: Tensor):
        self._readout = readout
        self._made_from = _versions(parts)

    @property
    def nbytes(self) -> int:
        """Bytes that a token reads of it."""
        return self._readout.matrix.nbytes

    def is_of(self, *parts: Tensor) -> bool:
        """Whether these are what it was made from, and unchanged."""
        return self._made_from == _versions(parts)

    def read(self, states: Tensor) -> Readout:
        """Logits of states `[..., d]`."""
        return replace(self._readout, rows=states)


def _versions(parts: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    return [(part.data_ptr(), part._version) for part in parts]
