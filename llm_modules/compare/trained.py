"""Competitors that train: each within the same budget, its rate chosen on the same grid."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, set_seed

from llm_modules.compare.budget import Budget, Cost, Meter
from llm_modules.compare.competitor import Competitor, Fit, Losses
from llm_modules.compare.counting import counted
from llm_modules.compare.distillation import Distilled
from llm_modules.compare.loop import Run, example_batches, moved, train_within_
from llm_modules.compare.problems import Problems
from llm_modules.compare.reading import READING_SHARE, read_within
from llm_modules.data.dataset import Collator, padding_id
from llm_modules.data.templates import Example, encode, encode_prompt
from llm_modules.errors import UserError
from llm_modules.features import Reading, read_text
from llm_modules.loading import to_accelerator_
from llm_modules.modeling import CombinedModel
from llm_modules.settings import TrainingSettings
from llm_modules.source import Source
from llm_modules.tasks import Problem
from llm_modules.training import TrainingData
from llm_modules.writing import Writing, write

TRIAL_SHARE = 0.1  # of the budget, for each rate, beside it
NUM_JUDGED = 24  # examples kept apart on which a rate is judged
NUM_COUNTED = 2  # examples of the batch whose FLOPs are counted
DIVERGED = 1e9  # nats: worse than any loss
MIN_UPDATES = 20  # that a budget should hold: a row whose batches are too slow for that gets smaller ones

Build = Callable[[], Any]


class Trained(Competitor):
    """Anything that answers the pair's calls and trains.

    Args:
        problems: Of the comparison.
        build: Makes it new; random weights follow from torch's seed.
        resident: Parameters needed to answer, of what was built.
        tokenizer: With the template that is trained; the source's if left out.
        vocab_size: That goes with it.
        num_asked: Answers at most so many problems.
    """

    def __init__(
        self,
        problems: Problems,
        build: Build,
        *,
        resident: Callable[[Any], int],
        tokenizer: PreTrainedTokenizerBase | None = None,
        vocab_size: int | None = None,
        num_asked: int | None = None,
    ):
        self.problems, self.build, self.resident, self.num_asked = problems, build, resident, num_asked
        self.tokenizer = problems.tokenizer if tokenizer is None else tokenizer
        self.vocab_size = problems.vocab_size if vocab_size is None else vocab_size
        self.model: Any = None

    def fit(self, budget: Budget, *, rates: Sequence[float], seed: int) -> Fit:
        """Try each rate for a tenth of the budget, then train with the best for all of it."""
        settings = self.problems.plan.settings.training.model_copy(update={"seed": seed})
        data = self.problems.data(self.tokenizer, vocab_size=self.vocab_size)
        judged = data.validation[:NUM_JUDGED]
        self._renew(seed)
        self._check_room([*data.training, *judged])
        training_cost, reading_cost = self._costs(data, settings)
        settings = self._fitting(settings, data, budget, training_cost)
        trials: dict[float, float] = {}
        tuning = Cost()
        for rate in rates if len(rates) > 1 else ():
            meter = Meter(budget.part(TRIAL_SHARE))
            self._train(data, _at_rate(settings, rate), meter, training_cost, reading_cost, label=f"trying {rate:g}")
            trials[rate] = self._mean_loss(judged)
            tuning += meter.cost
            self._renew(seed)
        rate = min(trials, key=trials.__getitem__) if trials else rates[0]
        meter = Meter(budget)
        run, seen, reading = self._train(
            data, _at_rate(settings, rate), meter, training_cost, reading_cost, label="training"
        )
        tail = run.losses[-max(1, len(run.losses) // 10) :]
        return Fit(
            training=meter.cost,
            reading=reading,
            tuning=tuning,
            updates=len(run.losses),
            examples=min(len(seen), len(run.losses) * settings.batch_size),
            batch_size=settings.batch_size,
            rate=rate,
            trials={f"{tried:g}": loss for tried, loss in trials.items()},
            last_loss=sum(tail) / len(tail),
        )

    @torch.no_grad()
    def losses(self, problems: Sequence[Problem]) -> Losses:
        """Over the full vocabulary, whatever training sampled."""
        examples = [encode(problem.messages(), self.tokenizer) for problem in problems]
        return Losses(
            [self._loss(example) for example in tqdm(examples, desc="loss of the right answers", unit=" answers")],
            [len(example.response_ids) for example in examples],
            [len(problem.response.encode()) for problem in problems],
        )

    def answers(self, problems: Sequence[Problem], *, max_new_tokens: int) -> Writing:
        """Greedy, in the template that was trained."""
        prompts = [encode_prompt(problem.messages()[:1], self.tokenizer) for problem in problems]
        return write(self.model, prompts, self.tokenizer, max_new_tokens=max_new_tokens, label="answers")

    def parameters(self) -> tuple[int, int]:
        """Of the model in hand."""
        return self.model.num_parameters(only_trainable=True), self.resident(self.model)

    def save(self, folder: Path) -> None:
        """With its tokenizer."""
        self.model.tokenizer = self.tokenizer
        self.model.save_pretrained(folder)

    def _check_room(self, examples: Sequence[Example]) -> None:
        """Refuse, before anything is trained, examples and test problems that the model cannot hold."""
        for example in examples:
            self.model.check_room(len(example.prompt_ids), len(example.response_ids))
        for problem in [*self.problems.test, *self.problems.asked]:
            prompt = encode_prompt(problem.messages()[:1], self.tokenizer)
            self.model.check_room(len(prompt), self.problems.plan.max_new_tokens)

    def _renew(self, seed: int) -> None:
        self.model = None  # the old one goes before the new one comes
        set_seed(seed)
        self.model = self.build()
        to_accelerator_(self.model)

    @property
    def _reader(self) -> tuple[Source, list[int], str] | None:
        """Who reads for the model in hand, which layers, and what of an example; `None` where nobody does."""
        if isinstance(self.model, CombinedModel):
            return self.model.source, self.model.config.taps, self.model.config.visibility
        if isinstance(self.model, Distilled):
            teacher = self.model.teacher
            return teacher, [teacher.config.get_text_config().num_hidden_layers], "causal"
        return None

    def _costs(self, data: TrainingData, settings: TrainingSettings) -> tuple[Cost, Cost]:
        """What a token costs in training and in reading, measured on a small batch; no weight is changed."""
        examples, reading_cost, reader = data.training[:NUM_COUNTED], Cost(), self._reader
        if reader is not None:
            source, taps, visibility = reader
            texts = [read_text(example, visibility) for example in examples]
            reading = Reading(source, taps=taps)
            reading_cost = counted(lambda: reading(texts)).times(1 / (len(texts) * max(map(len, texts))))
            examples = [replace(one, knowledge=states) for one, states in zip(examples, reading(texts), strict=True)]
        small = settings.model_copy(update={"batch_size": NUM_COUNTED, "tokens_per_batch": None})
        batches = example_batches(self.model, examples, small, self.tokenizer, loss_on=data.loss_on)
        inputs = moved(next(batches), self.model.device)
        self.model.train()
        cost = counted(lambda: self.model(**inputs).loss.backward())
        self.model.zero_grad()
        return cost.times(1 / inputs["input_ids"].numel()), reading_cost

    def _fitting(
        self, settings: TrainingSettings, data: TrainingData, budget: Budget, cost_per_token: Cost
    ) -> TrainingSettings:
        """The settings with batches so small that the budget holds some updates.

        Raises:
            UserError: If it does not hold a single one of one example.
        """
        left = 1.0 if self._reader is None else 1.0 - READING_SHARE
        mean = sum(map(len, data.training)) / len(data.training)
        one = cost_per_token.times(mean).of(budget)
        if one > left:
            needed = math.ceil(budget.amount * one / left * MIN_UPDATES)
            raise UserError(
                f"the budget of {budget} is too small for one step on one example, which takes "
                f"{Budget(one * budget.amount, budget.unit)}; give at least {Budget(needed, budget.unit)}"
            )
        size = settings.batch_size * settings.gradient_accumulation_steps
        if settings.tokens_per_batch is not None:
            size = max(1, round(settings.tokens_per_batch / mean))
        while size > 1 and MIN_UPDATES * size * one > left:
            size //= 2
        return settings.model_copy(update={"batch_size": size, "tokens_per_batch": None})

    def _train(
        self,
        data: TrainingData,
        settings: TrainingSettings,
        meter: Meter,
        cost: Cost,
        reading_cost: Cost,
        *,
        label: str,
    ) -> tuple[Run, Sequence[Example], Cost]:
        examples: Sequence[Example] = data.training
        if self._reader is not None:
            source, taps, visibility = self._reader
            examples = read_within(
                source,
                examples,
                taps=taps,
                visibility=visibility,
                meter=meter,
                cost_per_token=reading_cost,
                seed=settings.seed,
                label=f"reading, {label}",
            )
        reading = meter.cost
        run = train_within_(
            self.model,
            examples,
            settings,
            tokenizer=self.tokenizer,
            loss_on=data.loss_on,
            meter=meter,
            cost_per_token=cost,
            label=label,
        )
        return run, examples, reading

    def _mean_loss(self, examples: Sequence[Example]) -> float:
        with torch.no_grad():
            summed = sum(self._loss(example) for example in examples)
        loss = summed / sum(len(example.response_ids) for example in examples)
        return loss if math.isfinite(loss) else DIVERGED

    def _loss(self, example: Example) -> float:
        """In nats, summed over the response."""
        inputs = Collator(padding_id(self.tokenizer, vocab_size=self.vocab_size))([example])
        return float(self.model(**moved(inputs, self.model.device), num_items_in_batch=1).loss)


def _at_rate(settings: TrainingSettings, rate: float) -> TrainingSettings:
    """The same with this rate for the bridge, the others in the recipe's ratio to it."""
    factor = rate / settings.learning_rate_bridge
    names = ("learning_rate_bridge", "learning_rate_generator", "muon_learning_rate")
    return settings.model_copy(update={name: getattr(settings, name) * factor for name in names})
