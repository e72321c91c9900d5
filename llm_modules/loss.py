"""Cross-entropy at labelled positions only; the one place where labels are shifted and masked."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llm_modules.errors import UserError

IGNORED = -100  # a label that carries no loss, as everywhere in torch and transformers
CHUNK_ELEMENTS = 2**24  # logits held at once: 64 MB in fp32


@dataclass(frozen=True)
class LossVocabulary:
    """A subset of the vocabulary that stands for all of it in the softmax.

    Args:
        words: `[num_words]` sorted, unique token ids; every label must be among them.
        log_weights: `[num_words]`, added to the logits: a word drawn with probability `q` from many stands for `1 / q`
            words, so that the sampled partition function estimates the full one without bias.
    """

    words: Tensor
    log_weights: Tensor

    @classmethod
    def sample(
        cls, certain: Tensor, *, num_random: int, vocab_size: int, generator: torch.Generator
    ) -> "LossVocabulary":
        """All `certain` words (`[n]`, unique) and `num_random` others, drawn uniformly without replacement."""
        others = torch.ones(vocab_size, dtype=torch.bool)
        others[certain] = False
        pool = others.nonzero().squeeze(1)
        num_random = min(num_random, len(pool))
        drawn = pool[torch.randperm(len(pool), generator=generator)[:num_random]]
        words, order = torch.cat([certain, drawn]).sort()
        log_weights = torch.zeros(len(words))
        if num_random:
            log_weights[order >= len(certain)] = float(torch.log(torch.tensor(len(pool) / num_random)))
        return cls(words, log_weights)

    def to(self, device: torch.device) -> "LossVocabulary":
        """The same on another device."""
        return LossVocabulary(self.words.to(device), self.log_weights.to(device))

    def positions(self, targets: Tensor) -> Tensor:
        """Index of each target among `words`."""
        found = torch.searchsorted(self.words, targets).clamp(max=len(self.words) - 1)
        if not torch.equal(self.words[found], targets):
            stray = int(targets[self.words[found] != targets][0])
            raise UserError(f"label {stray} is not in the loss vocabulary; add every label's token id to its words")
        return found


def label_rows(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions predict a label, and which one: the state at `t` predicts the label at `t + 1`.

    Args:
        labels: `[batch, length]` token ids, -100 where there is no loss.

    Returns:
        `[batch, length]` bool mask of predicting positions, and the `[num_labels]` targets in the same order.
    """
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED
    return predicts, labels[:, 1:][predicts[:, :-1]]


def cross_entropy(
    states: Tensor,
    targets: Tensor,
    project: Callable[[Tensor, Tensor | None, Tensor | None], Tensor],
    *,
    final: Tensor | None = None,
    vocab_size: int,
    vocabulary: LossVocabulary | None = None,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Mean cross-entropy in nats, never holding `[num_labels, V]` logits at once.

    Args:
        states: `[num_labels, d]` what the head reads.
        targets: `[num_labels]` token ids.
        project: The head: states, final states and the words wanted (`None` for all) to logits.
        final: `[num_labels, D]` what the head adds to, if anything.
        vocab_size: `V`, for sizing the chunks.
        vocabulary: Words that stand for the vocabulary; `None` for all of it.
        num_items: Divide the sum by this instead of by `num_labels` (gradient accumulation).
    """
    if vocabulary is not None:
        vocabulary = vocabulary.to(states.device)
        targets = vocabulary.positions(targets)
        vocab_size = len(vocabulary.words)

    def chunk_loss(rows: Tensor, chunk_final: Tensor | None, chunk_targets: Tensor) -> Tensor:
        logits = project(rows, chunk_final, None if vocabulary is None else vocabulary.words).float()
        if vocabulary is not None:
            logits = logits + vocabulary.log_weights
        return F.cross_entropy(logits, chunk_targets, reduction="sum")

    rows_per_chunk = max(1, CHUNK_ELEMENTS // vocab_size)
    if len(targets) <= rows_per_chunk:
        total = chunk_loss(states, final, targets)
    else:
        starts = range(0, len(targets), rows_per_chunk)
        parts = [slice(start, start + rows_per_chunk) for start in starts]
        chunks = [(states[part], None if final is None else final[part], targets[part]) for part in parts]
        total = torch.stack([checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()
    return total / (len(targets) if num_items is None else num_items)
