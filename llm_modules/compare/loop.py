"""A plain training loop that ends with its budget, its learning rate laid out to end there too."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from llm_modules.compare.budget import Cost, Meter
from llm_modules.data.dataset import Collator, LossOn, padding_id
from llm_modules.data.templates import Example
from llm_modules.knowledge import Knowledge
from llm_modules.loss import LossVocabulary
from llm_modules.optimizer import optimizer_of, update_
from llm_modules.settings import TrainingSettings
from llm_modules.trainer import training_batches
from llm_modules.training import TrainingData

Inputs = dict[str, Any]
ADAM_BETA1 = 0.9
ROUNDING = 1e-9


@dataclass(frozen=True)
class Run:
    """What a training run left beside the weights.

    Args:
        losses: Of every update, in nats per token, as training takes it.
        cost: Seconds and FLOPs of the updates.
    """

    losses: list[float]
    cost: Cost


def train_within_(
    model: nn.Module,
    examples: Sequence[Example],
    settings: TrainingSettings,
    *,
    tokenizer: PreTrainedTokenizerBase,
    loss_on: LossOn,
    meter: Meter,
    cost_per_token: Cost,
    label: str,
) -> Run:
    """Train in place until another update would not fit in the budget; at least one is made.

    The rate follows the budget rather than a number of updates: its course ends where the budget does, however long an
    update takes.

    Args:
        model: New; anything that answers the pair's calls. It is left in eval mode.
        examples: To train on, over and over, with their knowledge if the model reads any.
        settings: Batches, optimizer, rates and their course; how long a recipe would train counts for nothing.
        tokenizer: To pad.
        loss_on: Which tokens carry loss.
        meter: What has been spent before, and goes on being spent.
        cost_per_token: What was measured; the first update is foreseen by it.
        label: What the progress bar calls it.
    """
    optimizer = optimizer_of(model, settings, betas=(ADAM_BETA1, settings.adam_beta2))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    peaks = [group["lr"] for group in optimizer.param_groups]
    begun, before = meter.spent, meter.cost
    losses: list[float] = []
    batches = example_batches(model, examples, settings, tokenizer, loss_on=loss_on)
    device = next(iter(parameters)).device
    foreseen: float | None = None
    model.train()
    with tqdm(total=1.0, desc=label, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as progress:
        while True:
            with meter.timed():
                inputs = moved(next(batches), device)
                tokens = inputs["input_ids"].numel()
                if foreseen is None:
                    foreseen = cost_per_token.times(tokens).of(meter.budget)
                passed = min(1.0, (meter.spent + foreseen - begun) / max(1.0 - begun, foreseen))
                factor = rate_factor(settings, passed=passed, step=len(losses) + 1)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                loss = model(**inputs).loss
                losses.append(update_(loss, parameters, optimizer, max_grad_norm=settings.max_grad_norm))
            meter.charge(tokens * cost_per_token.flops)
            progress.update(min(meter.spent, 1.0) - progress.n)
            foreseen = (meter.spent - begun) / len(losses)
            if meter.spent + foreseen > 1.0 + ROUNDING:
                break
    model.eval()
    return Run(losses, Cost(meter.cost.seconds - before.seconds, meter.cost.flops - before.flops))


def rate_factor(settings: TrainingSettings, *, passed: float, step: int) -> float:
    """Share of the peak rate after so much of the training budget: the warm-up, then the recipe's course down to 0.

    Args:
        settings: Course and warm-up; a warm-up of one or more counts updates, as the Trainer's does.
        passed: Share of the budget that will have passed, 0 to 1.
        step: Number of this update, from 1.
    """
    if settings.warmup_steps >= 1:
        warmed, left = step / settings.warmup_steps, 1.0 - passed
    else:
        warmed = passed / settings.warmup_steps if settings.warmup_steps else 1.0
        left = (1.0 - passed) / (1.0 - settings.warmup_steps)
    if settings.lr_scheduler == "linear":
        return min(1.0, warmed, left)
    if settings.lr_scheduler == "cosine":
        return min(1.0, warmed, 0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))
    return 1.0 if settings.lr_scheduler == "constant" else min(1.0, warmed)


def example_batches(
    model: nn.Module,
    examples: Sequence[Example],
    settings: TrainingSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    loss_on: LossOn = "response",
    collate: Callable[[Sequence[Example]], Inputs] | None = None,
) -> Iterator[Inputs]:
    """Batches of similar lengths without end, in an order that seed and epoch alone decide.

    With `settings.sampled_words` each comes with the words that stand for the vocabulary in its loss. `collate` is for
    examples whose knowledge lies elsewhere.
    """
    vocab_size: int = model.config.vocab_size  # type: ignore[assignment, union-attr]
    order: Any = training_batches(examples, settings)
    by: dict[str, Any] = {"batch_size": settings.batch_size, "sampler": order}
    if settings.tokens_per_batch is not None:
        by = {"batch_sampler": order}
    collate = collate or Collator(padding_id(tokenizer, vocab_size=vocab_size), loss_on)
    words = TrainingData(list(examples), [], loss_on).trained_words
    numbers = torch.Generator().manual_seed(settings.seed)
    for epoch in count():
        order.set_epoch(epoch)
        for batch in DataLoader(examples, collate_fn=collate, **by):  # type: ignore[arg-type]
            inputs = with_given_knowledge(batch)
            if settings.sampled_words is not None:
                inputs["loss_vocabulary"] = LossVocabulary.sample(
                    words, num_random=settings.sampled_words, vocab_size=vocab_size, generator=numbers
                )
            yield inputs


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """Arguments of `forward` on a device."""
    return {name: value.to(device) for name, value in inputs.items()}


def with_given_knowledge(batch: Inputs) -> Inputs:
    """What a collator made as arguments of `forward`: knowledge, where there is any, in one piece."""
    inputs = dict(batch)
    if "knowledge_states" not in inputs:
        return inputs
    return inputs | {"knowledge": Knowledge(inputs.pop("knowledge_states"), inputs.pop("knowledge_mask"))}
