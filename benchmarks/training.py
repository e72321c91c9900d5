"""A plain training loop: several models on the same batches, whose knowledge the source has read once for all.

`llm_modules.training.fit` lets the source read for each model anew; here one reading serves all, and a model can be
judged on the way.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, get_scheduler

from benchmarks.given_batches import update_
from benchmarks.pairs import optimizer_of
from llm_modules import CombinedModel, Knowledge
from llm_modules.data.batches import LengthGroupedBatches
from llm_modules.data.dataset import Collator, padding_id
from llm_modules.data.templates import Example
from llm_modules.loss import LossVocabulary
from llm_modules.settings import TrainingSettings
from llm_modules.training import TrainingData

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


def example_batches(
    model: CombinedModel,
    examples: Sequence[Example],
    settings: TrainingSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    collate: Callable[[Sequence[Example]], Inputs] | None = None,
) -> Iterator[Inputs]:
    """Batches of similar lengths without end, in an order that seed and epoch alone decide.

    With `settings.sampled_words` each comes with the words that stand for the vocabulary in its loss. `collate` is for
    examples whose knowledge lies elsewhere.
    """
    vocab_size = model.config.vocab_size
    order = LengthGroupedBatches(
        [len(example) for example in examples], batch_size=settings.batch_size, seed=settings.seed
    )
    collate = collate or Collator(padding_id(tokenizer, vocab_size=vocab_size))
    words = TrainingData(list(examples), []).trained_words
    numbers = torch.Generator().manual_seed(settings.seed)
    for epoch in count():
        order.set_epoch(epoch)
        for batch in DataLoader(examples, batch_size=settings.batch_size, sampler=order, collate_fn=collate):
            inputs = with_given_knowledge(batch)
            if settings.sampled_words is not None:
                inputs["loss_vocabulary"] = LossVocabulary.sample(
                    words, num_random=settings.sampled_words, vocab_size=vocab_size, generator=numbers
                )
            yield inputs


def with_given_knowledge(batch: Inputs) -> Inputs:
    """What a collator made as arguments of `forward`: knowledge in one piece."""
    inputs = dict(batch)
    return inputs | {"knowledge": Knowledge(inputs.pop("knowledge_states"), inputs.pop("knowledge_mask"))}


def curve(losses: Sequence[float]) -> list[tuple[int, float]]:
    """Steps and losses for a picture: means over neighbours, some `POINTS` of them."""
    width = max(1, len(losses) // POINTS)
    cuts = [*range(0, len(losses), width), len(losses)]
    return [(stop, sum(losses[start:stop]) / (stop - start)) for start, stop in pairwise(cuts) if stop > start]
