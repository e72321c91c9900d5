"""Which examples share a batch: some of similar lengths, counted by examples or by tokens."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthGroupedBatches(Sampler[int]):
    """Order examples so that each `batch_size` in a row have similar lengths; seed and epoch alone decide the order.

    Groups as transformers' `LengthGroupedSampler` does, and differs from it in two ways. That one draws from the global
    random state, so that a run resumed after its first epoch would see other batches than an uninterrupted one. And it
    serves each group from long to short, so that the loss saws; here the batches are shuffled.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples in a batch.
        seed: Together with the epoch it decides the order.
        fraction: Share of the examples in an epoch, drawn anew for each.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int, fraction: float = 1.0) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.fraction = fraction
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; accelerate calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return drawn_per_epoch(len(self.lengths), self.fraction)

    def __iter__(self) -> Iterator[int]:
        random_state = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = list(range(len(self.lengths)))
        if len(self) < len(self.lengths):
            drawn = torch.randperm(len(self.lengths), generator=random_state)[: len(self)].tolist()
        grouped = get_length_grouped_indices(
            [self.lengths[index] for index in drawn], self.batch_size, generator=random_state
        )
        indices = [drawn[index] for index in grouped]
        num_full = len(indices) // self.batch_size
        for batch in torch.randperm(num_full, generator=random_state).tolist():
            yield from indices[batch * self.batch_size : (batch + 1) * self.batch_size]
        yield from indices[num_full * self.batch_size :]  # a short last batch must stay last


class TokenBudgetBatches(Sampler[list[int]]):
    """Batches of similar lengths that hold as many examples as fit in so many tokens, padding counted.

    The examples are sorted by length and packed in this order; an example longer than the budget makes a batch of its
    own. Lengths that differ by less than a sixteenth count as equal, and seed and epoch alone decide the order among
    them, so that each epoch has other batches. How many there are depends on the lengths alone: it is the same in every
    epoch, and known before the first. With `fraction` an epoch serves a share of these batches rather than a share of
    the examples, which would pack into another number of batches each time.

    Args:
        lengths: Tokens of each example.
        tokens_per_batch: Most tokens in a batch: rows times the longest of them.
        seed: Together with the epoch it decides the order.
        fraction: Share of the batches in an epoch, drawn anew for each.
    """

    def __init__(self, lengths: Sequence[int], *, tokens_per_batch: int, seed: int, fraction: float = 1.0) -> None:
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.epoch = 0
        self._rounded = [_rounded_up(length) for length in lengths]
        self._num_batches = drawn_per_epoch(len(self._pack(sorted(range(len(lengths)), key=self._length))), fraction)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the Trainer calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        random_state = torch.Generator().manual_seed(self.seed + self.epoch)
        shuffled = torch.randperm(len(self._rounded), generator=random_state).tolist()
        batches = self._pack(sorted(shuffled, key=self._length))  # stable: equal lengths stay shuffled
        for batch in torch.randperm(len(batches), generator=random_state)[: len(self)].tolist():
            yield batches[batch]

    def _length(self, index: int) -> int:
        return self._rounded[index]

    def _pack(self, ascending: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        for index in ascending:
            if batches[-1] and (len(batches[-1]) + 1) * self._rounded[index] > self.tokens_per_batch:
                batches.append([])
            batches[-1].append(index)
        return [batch for batch in batches if batch]


class Share(Sampler[list[int]]):
    """One process's part of every batch: all processes together serve the batches that one alone would.

    Where a batch has fewer examples than there are processes, some get none of it: an empty list.

    Args:
        order: Of examples, or of whole batches.
        batch_size: Examples in a batch, of all processes together; counts for nothing where `order` serves batches.
        process: Which of the processes, from 0.
        num_processes: How many there are.
    """

    def __init__(self, order: Any, *, batch_size: int, process: int, num_processes: int) -> None:
        self.batch_sampler = order  # the name under which a Trainer looks for `set_epoch`
        self.batch_size, self.process, self.num_processes = batch_size, process, num_processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the Trainer calls this before each."""
        self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        served = len(self.batch_sampler)
        return served if isinstance(self.batch_sampler, TokenBudgetBatches) else math.ceil(served / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in in_batches(self.batch_sampler, batch_size=self.batch_size):
            yield batch[self.process :: self.num_processes]


def _rounded_up(length: int) -> int:
    """The length, or up to a sixteenth more: 32 to 63 tokens in steps of 2, 64 to 127 in steps of 4, and so on."""
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


def drawn_per_epoch(number: int, fraction: float) -> int:
    """How many examples (or batches) an epoch takes: a share of all, at least one."""
    return max(1, round(number * fraction))


def in_batches(order: Iterable[int] | Iterable[list[int]], *, batch_size: int) -> list[list[int]]:
    """What a sampler serves, as batches: those it makes itself, or `batch_size` of its examples in a row."""
    served = list(order)
    if served and isinstance(served[0], list):
        return served  # type: ignore[return-value]
    return [served[start : start + batch_size] for start in range(0, len(served), batch_size)]  # type: ignore[misc]


def padding_share(lengths: Sequence[int], batches: Iterable[Sequence[int]]) -> float:
    """Measure the share of padding among all tokens of these batches of indices."""
    served = [[lengths[index] for index in batch] for batch in batches]
    slots = sum(len(batch) * max(batch) for batch in served if batch)
    return 1 - sum(map(sum, served)) / slots if slots else 0.0
