"""What a pair is measured against: LoRA, ShadowPEFT and full fine-tuning of the same source, made as fast as we can.

All of them compute logits only where there is a label, as the pair does. transformers' own forward would compute them
at every position.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from benchmarks.given_batches import Actions, collated, read_batches
from llm_modules import Source
from llm_modules.compare.adapters import AdaptedSource, Method
from llm_modules.data.templates import Example
from llm_modules.loss import label_rows
from llm_modules.optimizer import update_

LEARNING_RATE = 1e-4
LEAN_ROWS = 128  # labels whose logits are held at once where memory counts
SEED = 0


def rival(method: Method, folder: str) -> Actions:
    """A rival on the default source.

    Args:
        method: `lora` (all linear layers), `lora_attention`, `shadow` or `full`.
        folder: Where the batches are.
    """
    batches = read_batches(Path(folder))
    return actions_of(method, Source.load("default").model, batches)


def actions_of(method: Method, model: PreTrainedModel, batches: list[list[Example]]) -> Actions:
    """`step(index)` trains on a batch and `lean_step(index)` does with a loss that holds few logits.

    Args:
        method: As for `rival`.
        model: The source as transformers loads it.
        batches: To train on.
    """
    torch.manual_seed(SEED)
    adapted = AdaptedSource(method, model).train()
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

    def train(index: int, *, lean: bool) -> float:
        batch = collated(batches[index])
        predicts, targets = label_rows(batch["labels"])
        states = adapted.states(batch["input_ids"], batch["attention_mask"])
        mean = lean_loss if lean else plain_loss
        loss = mean(states[predicts], targets, adapted.matrix)
        shadow, weight = adapted.auxiliary()
        if shadow is not None:  # its own auxiliary loss, at the labels too
            loss = loss + weight * mean(shadow[predicts], targets, adapted.matrix)
        return update_(loss, parameters, optimizer)

    return {
        "step": lambda index: train(index, lean=False),
        "lean_step": lambda index: train(index, lean=True),
        "num_trained": adapted.num_parameters,
    }


def plain_loss(states: Tensor, targets: Tensor, matrix: Tensor) -> Tensor:
    """All logits at once: nothing is computed twice, so this is the fastest."""
    return F.cross_entropy(F.linear(states, matrix), targets)


def lean_loss(states: Tensor, targets: Tensor, matrix: Tensor) -> Tensor:
    """Few logits at a time, computed again in the backward pass: least memory."""

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(rows, matrix), wanted, reduction="sum")

    pieces = zip(states.split(LEAN_ROWS), targets.split(LEAN_ROWS), strict=True)
    return torch.stack([checkpoint(part, *piece, use_reentrant=False) for piece in pieces]).sum() / len(targets)
