"""Cross-entropy at labelled positions only; the one place where labels are shifted and masked."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_modules.errors import UserError
from llm_modules.readout import Readout

IGNORED = -100  # a label that carries no loss, as everywhere in torch and transformers
CHUNK_ELEMENTS = 2**24  # logits held at once: 64 MB in fp32
CHUNK_ROWS = 256  # but no fewer rows: with V = 151,936, products of 110 reach two thirds of the speed of 256 and more


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


def rows_per_chunk(num_words: int) -> int:
    """How many rows' logits over so many words are held at once."""
    return max(CHUNK_ROWS, CHUNK_ELEMENTS // num_words)


def label_rows(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions predict a label, and which one: the state at `t` predicts the label at `t + 1`.

    Args:
        labels: `[batch, length]` token ids, -100 where there is no loss.

    Returns:
        `[batch, length]` bool mask of predicting positions, and the `[num_labels]` targets in the same order.

    Raises:
        UserError: If no position has a label.
    """
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][predicts[:, :-1]]
    if not len(targets):
        raise UserError("no position has a label after masking; check labels and max_length")
    return predicts, targets


def cross_entropy(
    readout: Readout,
    targets: Tensor,
    *,
    vocabulary: LossVocabulary | None = None,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Mean cross-entropy in nats, never holding `[num_labels, V]` logits at once.

    Gradients are worked out on the way forward, while a chunk's logits are there, so nothing is computed twice; they
    can be handed back once (`retain_graph` does not keep them).

    Args:
        readout: Gives the logits, of `num_labels` rows.
        targets: `[num_labels]` token ids.
        vocabulary: The words that the logits are of; `None` for all.
        num_items: Divide the sum by this instead of by `num_labels` (gradient accumulation).

    Raises:
        UserError: If a target is not in the vocabulary.
    """
    log_weights = None
    if vocabulary is not None:
        targets, log_weights = vocabulary.positions(targets), vocabulary.log_weights
    total = _SummedCrossEntropy.apply(
        readout.rows, readout.matrix, readout.bias, readout.cap, targets, log_weights, torch.is_grad_enabled()
    )
    return total / (len(targets) if num_items is None else num_items)


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum over rows of `logsumexp(logits) - logits[target]` in fp32, `rows_per_chunk` at a time, in one buffer."""

    @staticmethod
    def forward(ctx, rows, matrix, bias, cap, targets, log_weights, with_gradients):
        wanted = [given is not None and given.requires_grad and with_gradients for given in (rows, matrix, bias)]
        computed = torch.get_autocast_dtype(rows.device.type) if torch.is_autocast_enabled(rows.device.type) else None
        low = matrix.to(computed or matrix.dtype)  # what the matrix products run in
        by_rows, by_matrix, by_bias = (
            torch.zeros_like(given) if want else None for given, want in zip((rows, matrix, bias), wanted, strict=True)
        )
        step = min(len(rows), rows_per_chunk(len(matrix)))
        products = low.new_empty(step, len(matrix))
        total = rows.new_zeros((), dtype=torch.float32)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            states, chosen = rows[part].to(low.dtype), targets[part]
            number = torch.arange(len(chosen), device=rows.device)
            logits = torch.mm(states, low.T, out=products[: len(chosen)]).float()  # the buffer itself, if that is fp32
            if bias is not None:
                logits += bias
            slope = None
            if cap is not None:
                logits.div_(cap).tanh_()
                slope = 1 - logits.square()
                logits *= cap
            if log_weights is not None:
                logits += log_weights
            logits -= logits.amax(-1, keepdim=True)
            total -= logits[number, chosen].sum()
            sums = logits.exp_().sum(-1, keepdim=True)
            total += sums.log().sum()
            if not any(wanted):
                continue
            logits /= sums
            logits[number, chosen] -= 1  # now the gradient of the logits
            if slope is not None:
                logits *= slope
            lowered = logits.to(low.dtype)
            if by_rows is not None:
                by_rows[part] = lowered @ low
            if by_matrix is not None and low.dtype == by_matrix.dtype:
                by_matrix.addmm_(lowered.T, states)
            elif by_matrix is not None:
                by_matrix += lowered.T @ states
            if by_bias is not None:
                by_bias += logits.sum(0)
        ctx.gradients = (by_rows, by_matrix, by_bias)
        return total

    @staticmethod
    def backward(ctx, outer):
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were handed back before; compute it anew")
        gradients, ctx.gradients = ctx.gradients, None
        # in place: of a large head there is room for one gradient only
        return *(None if given is None else given.mul_(outer) for given in gradients), None, None, None, None
