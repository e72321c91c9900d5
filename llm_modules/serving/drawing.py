"""Which token comes next: the likeliest, or one drawn by the answer's own random numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from llm_modules.chat import Sampling

GREEDY_BELOW = 1e-4  # temperatures that fp32 cannot divide by


@dataclass(frozen=True)
class Likelihood:
    """A token and how likely the model finds it, whatever the temperature.

    Args:
        token: Its id.
        logprob: Natural logarithm of its probability.
    """

    token: int
    logprob: float


class Drawing:
    """Draws the tokens of one answer: the same seed gives the same answer, whoever is answered beside it.

    Args:
        sampling: How.
        index: Which of several answers to one prompt this is; each draws its own.
    """

    def __init__(self, sampling: Sampling, *, index: int = 0):
        self._sampling = sampling
        self._random = torch.Generator().manual_seed((sampling.seed + index) % 2**63)
        self._top_p = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None

    def draw(self, logits: Tensor) -> int:
        """The next token, given logits `[V]`."""
        if self._sampling.temperature < GREEDY_BELOW:
            return _likeliest(logits)
        words = None
        if 0 < self._sampling.top_k < len(logits):
            words = logits.topk(self._sampling.top_k).indices.sort().values
            logits = logits[words]
        # in the order of the vocabulary, not of likelihood: two words that are nearly as likely must not change places
        scores = (logits - logits.max()) / self._sampling.temperature
        if self._top_p is not None:
            scores = self._top_p(None, scores[None])[0]
        reached = scores.softmax(-1).double().cumsum(-1)
        chance = torch.rand((), generator=self._random, dtype=torch.double) * reached[-1].cpu()
        place = int(torch.searchsorted(reached, chance.to(reached.device), right=True).clamp(max=len(reached) - 1))
        return place if words is None else int(words[place])


def _likeliest(logits: Tensor) -> int:
    """The first of the largest of `[V]`."""
    if logits.device.type == "cpu":  # torch takes 87 us for 49,152 words here, numpy 4: a sixth of a step of eight
        return int(logits.float().numpy().argmax())
    return int(logits.argmax())


def likelihoods(logits: Tensor, token: int, num_others: int) -> tuple[Likelihood, list[Likelihood]]:
    """Of a token that was drawn, and of so many likeliest ones, given logits `[V]`."""
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(num_others)
    others = [Likelihood(*pair) for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
    return Likelihood(token, float(logprobs[token])), others
