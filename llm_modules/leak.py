"""The leak test: whether what a pair says of the next token depends on that token, or on any after it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from llm_modules.bootstrap import Estimate, bootstrap
from llm_modules.data.templates import Example
from llm_modules.features import inputs_of
from llm_modules.modeling import CombinedModel

NUM_TESTED = 32
FUTURE = 16  # tokens of the future that a position might see
TOLERANCE = 1e-2  # of a logit; two ways to compute the same one differ by some 1e-4 in fp32


@dataclass(frozen=True)
class Leak:
    """What positions change their mind by when their future stands before the model.

    Args:
        gained_nats: By how much the loss of the next token is lower when it stands there.
        largest_move: Largest change of any logit.
        num_positions: How many positions were tested, one a response.
    """

    gained_nats: Estimate
    largest_move: float
    num_positions: int

    @property
    def leaks(self) -> bool:
        """Whether a logit moved by more than rounding moves it."""
        return not self.largest_move <= TOLERANCE  # so that NaN is no pass

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            "leaks": self.leaks,
            "gained_nats": self.gained_nats.as_dict(),
            "largest_move": self.largest_move,
            "num_positions": self.num_positions,
        }


@torch.no_grad()
def leak_test(model: CombinedModel, examples: Sequence[Example], *, seed: int) -> Leak:
    """Predict a token of each response twice: with itself and what follows before the model, and without.

    Args:
        model: The pair, in eval mode.
        examples: Prompts and responses; the first `NUM_TESTED` are taken.
        seed: Decides which token of a response.
    """
    numbers = torch.Generator().manual_seed(seed)
    gained, largest = [], 0.0
    for example in tqdm(examples[:NUM_TESTED], desc="leak test", unit=" positions"):
        written = int(torch.randint(len(example.response_ids), (), generator=numbers))  # tokens of it that stand there
        without = _next_logits(model, example, written, future=0)
        whole = _next_logits(model, example, written, future=1 + FUTURE)
        moved = (whole - without).abs().max().item()
        largest = moved if math.isnan(moved) else max(largest, moved)
        target = torch.tensor(example.response_ids[written], device=whole.device)
        gained.append((F.cross_entropy(without, target) - F.cross_entropy(whole, target)).item())
    return Leak(bootstrap(gained, seed=seed), largest, len(gained))


def _next_logits(model: CombinedModel, example: Example, written: int, *, future: int) -> torch.Tensor:
    """Of the token after so many of the response, with so many more before the model, `[V]`."""
    shown = Example(example.prompt_ids, example.response_ids[: written + future])
    after = len(shown.response_ids) - written
    return model(**inputs_of(model, shown), logits_to_keep=after + 1).logits[0, 0].float()
