"""The loss that a model meets when it writes: of the true next token, given the tokens before it and nothing else."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from llm_modules import CombinedModel, Knowledge, Source
from llm_modules.controls import SourceView


@torch.no_grad()
def teacher_forced_losses(
    model: CombinedModel, ids: Tensor, *, prompt_len: int, first: int, states: Tensor | None = None
) -> Tensor:
    """Losses in nats of tokens `first` and later, all from one forward over the whole row, as in training.

    Args:
        model: The pair.
        ids: `[batch, length]`, without padding.
        prompt_len: Tokens of the prompt.
        first: Column of the first token to be predicted, at least 1.
        states: `[batch, length, taps, D]`, what the source says about `ids`; read anew if left out.

    Returns:
        `[batch, length - first]`.
    """
    logits = model(ids, **_arguments(ids, prompt_len, states)).logits[:, first - 1 : -1]
    # rows of words, not columns: across a stride the sum over the vocabulary drifts by 1e-4 in fp32
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, first:].flatten(), reduction="none")
    return losses.view(ids.shape[0], -1)


@torch.no_grad()
def decoding_losses(
    model: CombinedModel, ids: Tensor, *, prompt_len: int, first: int, states: Tensor | None = None
) -> Tensor:
    """The same losses from one forward over each prefix, its last position's: there is no future to read.

    Of `states` each prefix takes its own columns: the source is causal, so it says about a prefix what it says about
    the prefix's tokens within the whole.
    """
    losses = []
    for end in range(first, ids.shape[1]):
        arguments = _arguments(ids[:, :end], prompt_len, None if states is None else states[:, :end])
        logits = model(ids[:, :end], **arguments, logits_to_keep=1).logits[:, 0]
        losses.append(F.cross_entropy(logits, ids[:, end], reduction="none"))
    return torch.stack(losses, dim=1)


def _arguments(ids: Tensor, prompt_len: int, states: Tensor | None) -> dict[str, Any]:
    is_prompt = (torch.arange(ids.shape[1]) < prompt_len).expand_as(ids)
    knowledge = None if states is None else Knowledge(states, torch.ones_like(ids, dtype=torch.bool))
    return {"prompt_mask": is_prompt, "knowledge": knowledge}


class RememberingSource(SourceView):
    """The same source, which reads only what is new since its last reading.

    A `bidirectional` pair decodes without a cache and has its source read the whole text again for every token. The
    source's own states do not change by that, so remembering them writes the same text sooner.
    """

    def __init__(self, source: Source):
        super().__init__(source)
        self._ids: Tensor | None = None
        self._states: Tensor | None = None
        self._cache: Cache | None = None

    def read(self, input_ids: Tensor, *, attention_mask: Tensor, taps: list[int], cache: Cache | None = None) -> Tensor:
        """States of all tokens, as `Source.read`; a `cache` of the caller's would be one too many."""
        known, past = self._states, self._ids
        if past is None or not torch.equal(past, input_ids[:, : past.shape[1]]) or past.shape == input_ids.shape:
            known, self._cache = None, DynamicCache(config=self.config)  # another text
        start = 0 if known is None else known.shape[1]
        new = super().read(input_ids[:, start:], attention_mask=attention_mask, taps=taps, cache=self._cache)
        self._ids, self._states = input_ids, new if known is None else torch.cat([known, new], dim=1)
        return self._states
