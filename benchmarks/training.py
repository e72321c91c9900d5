"""A plain training loop: several models on the same batches, whose knowledge the source has read once for all.

`llm_modules.training.fit` lets the source read for each model anew; here one reading serves all, and a model can be
judged on the way.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from tqdm.auto import tqdm
from transformers import get_scheduler

from llm_modules import CombinedModel
from llm_modules.optimizer import optimizer_of, update_
from llm_modules.settings import TrainingSettings

Inputs = dict[str, Any]
POINTS = 60  # of a curve in a picture


def train_(
    model: CombinedModel,
    batches: Iterator[Inputs],
    settings: TrainingSettings,
    *,
    steps: int,
    label: str,
    each: Callable[[int], None] | None = None,
) -> list[float]:
    """Train in place; returns the loss of every step.

    Args:
        model: A new pair; it is left in eval mode.
        batches: Arguments of its `forward`, without end.
        settings: Optimizer, learning rates and their course.
        steps: Updates of the weights.
        label: What the progress bar calls it.
        each: Called with the number of updates made, after each.
    """
    optimizer, parameters = optimizer_of(model, settings, betas=(0.9, settings.adam_beta2)), list(model.parameters())
    schedule = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=round(settings.warmup_steps * (steps if settings.warmup_steps < 1 else 1)),
        num_training_steps=steps,
    )
    losses: list[float] = []
    with tqdm(total=steps, desc=label, unit=" steps") as progress:
        for inputs in batches:
            loss = model.train()(**inputs).loss
            losses.append(update_(loss, parameters, optimizer, max_grad_norm=settings.max_grad_norm))
            schedule.step()
            progress.update()
            if each is not None:
                each(len(losses))
            if len(losses) == steps:
                break
    model.eval()
    return losses


def curve(losses: Sequence[float]) -> list[tuple[int, float]]:
    """Steps and losses for a picture: means over neighbours, some `POINTS` of them."""
    width = max(1, len(losses) // POINTS)
    cuts = [*range(0, len(losses), width), len(losses)]
    return [(stop, sum(losses[start:stop]) / (stop - start)) for start, stop in pairwise(cuts) if stop > start]
