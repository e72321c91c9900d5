"""The last step of every model here: states to logits, by one matrix."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

FEW_ROWS = range(2, 17)  # measured: 2.4 times faster at 4, 1.7 at 8, 1.4 at 16, the same at 64


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
        logits = _product(self.rows, self.matrix)
        if self.bias is not None:
            logits = logits + self.bias
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def folding_pays(num_rows: int, *, narrow: int, wide: int) -> bool:
    """Whether a frozen matrix `[num_words, wide]` should go through the projection `narrow -> wide`, not the rows.

    Both give the same logits. Folded, each word costs `4 wide narrow` operations a step, there and back, and each row
    `6 narrow` a word, because the folded matrix has a gradient; otherwise `4 wide`.
    """
    return num_rows * (4 * wide - 6 * narrow) > 4 * wide * narrow


class FoldedHead:
    """A head made ready for decoding: one matrix `[V, d]`, laid out for the number of rows that it meets.

    The frozen matrix `[V, D]` behind a projection from `d` becomes one `[V, d]`: fewer bytes to read a token. On a CPU
    a single row reads it faster by columns (paper's head: 24 ms for 36), several rows by rows; it is kept in one of the
    two, and laid out anew when the other is asked for.

    Args:
        readout: Of the matrix, with the projection folded in, for any rows.
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

    def lay_out_(self, num_rows: int) -> None:
        """Make ready for steps of so many rows; any other number gives the same logits, more slowly."""
        matrix = self._readout.matrix
        if num_rows > 1 or matrix.device.type != "cpu":
            self._readout = replace(self._readout, matrix=matrix.contiguous())
        else:
            self._readout = replace(self._readout, matrix=matrix.T.contiguous().T)

    def read(self, states: Tensor) -> Readout:
        """Logits of states `[..., d]`."""
        return replace(self._readout, rows=states)


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """`rows @ matrix.T`, the words first where that is faster: few rows on the left keep a CPU's product slow."""
    num_rows = rows.shape[:-1].numel()
    if num_rows not in FEW_ROWS or rows.device.type != "cpu" or torch.is_grad_enabled() or not matrix.is_contiguous():
        return F.linear(rows, matrix)
    # contiguous: whoever reads logits may `view` them
    return (matrix @ rows.reshape(num_rows, -1).T).T.contiguous().view(*rows.shape[:-1], -1)


def _versions(parts: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    return [(part.data_ptr(), part._version) for part in parts]
