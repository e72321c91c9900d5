"""How much there is to train on (counted, given, or assumed), and how often."""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from llm_modules.data.batches import drawn_per_epoch
from llm_modules.data.dataset import split
from llm_modules.data.templates import Example, with_template
from llm_modules.errors import UserError
from llm_modules.settings import DataSettings, TrainingSettings
from llm_modules.training import TrainingData, load_data

# Where the data cannot be counted and nothing is given; printed as ASSUMED.
ASSUMED_EXAMPLES = 10_000
ASSUMED_SHARE_OF_LIMIT = 0.5  # tokens of the mean example, of the most that it may have
ASSUMED_SHARE_OF_PROMPT = 0.25  # prompt tokens, of all


@dataclass(frozen=True)
class Corpus:
    """Numbers of the examples that training would see.

    Args:
        num_training: Examples to train on.
        num_validation: Examples for validation.
        tokens_per_example: Mean of prompt and response together.
        prompt_tokens: Mean of the prompt alone.
        longest: Tokens of the longest example; memory must hold a batch of such.
        origin: Where the numbers come from, for the reader.
        num_words: Different tokens that carry loss, where they were counted.
    """

    num_training: int
    num_validation: int
    tokens_per_example: float
    prompt_tokens: float
    longest: int
    origin: str
    num_words: int | None = None

    @property
    def num_examples(self) -> int:
        """For training and validation."""
        return self.num_training + self.num_validation

    @property
    def longest_prompt(self) -> float:
        """Prompt tokens of the longest example, if its share of them is the usual one."""
        return self.longest * self.prompt_tokens / self.tokens_per_example


@dataclass(frozen=True)
class Schedule:
    """How long training goes on.

    Args:
        examples_per_epoch: Examples drawn for an epoch.
        steps_per_epoch: Updates of the weights in an epoch.
        num_steps: Updates in all.
        num_evaluations: Evaluations on the validation data.
        num_checkpoints: Most checkpoints on the disk at a time.
    """

    examples_per_epoch: int
    steps_per_epoch: int
    num_steps: int
    num_evaluations: int
    num_checkpoints: int

    @property
    def num_epochs(self) -> float:
        """Passes over an epoch's share of the data."""
        return self.num_steps / self.steps_per_epoch

    @classmethod
    def of(cls, settings: TrainingSettings, corpus: Corpus) -> "Schedule":
        """As `training` would run it to the end."""
        examples = drawn_per_epoch(corpus.num_training, settings.epoch_fraction)
        per_epoch = math.ceil(examples / settings.batch_size / settings.gradient_accumulation_steps)
        steps = settings.max_steps or math.ceil(per_epoch * settings.num_epochs)
        eval_steps = min(settings.eval_steps or per_epoch, steps)
        stops_early = settings.early_stopping_patience is not None
        save_steps = eval_steps if stops_early else min(settings.save_steps or per_epoch, steps)
        most = max(settings.save_total_limit, 2 if stops_early else 1) + 1  # the best, the newest, one being written
        return cls(
            examples_per_epoch=examples,
            steps_per_epoch=per_epoch,
            num_steps=steps,
            num_evaluations=math.ceil(steps / eval_steps) if corpus.num_validation else 0,
            num_checkpoints=min(math.ceil(steps / save_steps), most),
        )


@dataclass(frozen=True)
class Given:
    """What the user says about data that cannot be counted here.

    Args:
        examples: Conversations for training and validation, those left out as too long not among them.
        tokens_per_example: Mean of prompt and response together, as they are trained on.
        prompt_tokens: Mean of the prompt alone.
    """

    examples: int | None = None
    tokens_per_example: float | None = None
    prompt_tokens: float | None = None

    def checked(self, settings: DataSettings) -> "Given":
        """The same, if they can be true.

        Raises:
            UserError: If they contradict each other or the settings.
        """
        most = _longest_allowed(settings)
        if self.tokens_per_example is not None and self.tokens_per_example > most:
            raise UserError(
                f"tokens-per-example={self.tokens_per_example:g} is more than data.max_length and data.cut_to leave "
                f"({most}); give the mean of what remains"
            )
        tokens = self.tokens_per_example or most
        if self.prompt_tokens is not None and self.prompt_tokens >= tokens:
            raise UserError(
                f"prompt-tokens={self.prompt_tokens:g} leaves no response in examples of {tokens:g} tokens; it is "
                "a part of tokens-per-example"
            )
        return self


def corpus_of(
    settings: DataSettings, given: Given, *, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
) -> Corpus:
    """Count the data where they lie here and nothing is given; else take what is given, and assume the rest.

    Args:
        settings: Which data, in which form.
        given: What the user says about them.
        tokenizer: The source's, where it can be had.
        vocab_size: The source's.
    """
    given = given.checked(settings)
    if given == Given() and tokenizer is not None and _lies_here(settings):
        return _counted(load_data(settings, with_template(tokenizer, settings.template), vocab_size=vocab_size))
    if given == Given():
        why = "no tokenizer here" if _lies_here(settings) else "the data do not lie here"
        origin = f"ASSUMED: {why}; see --examples, --tokens-per-example, --prompt-tokens"
    elif None in (given.examples, given.tokens_per_example, given.prompt_tokens):
        origin = "given in part, the rest ASSUMED"
    else:
        origin = "given"
    most = _longest_allowed(settings)
    tokens = given.tokens_per_example or ASSUMED_SHARE_OF_LIMIT * most
    prompt = ASSUMED_SHARE_OF_PROMPT * tokens if given.prompt_tokens is None else given.prompt_tokens
    num_examples = given.examples or min(ASSUMED_EXAMPLES, settings.num_examples or ASSUMED_EXAMPLES)
    training, validation = split(range(num_examples), settings.validation_fraction, settings.seed)
    return Corpus(len(training), len(validation), tokens, prompt, most, origin)


def _counted(data: TrainingData) -> Corpus:
    examples: list[Example] = [*data.training, *data.validation]
    return Corpus(
        num_training=len(data.training),
        num_validation=len(data.validation),
        tokens_per_example=fmean(map(len, examples)),
        prompt_tokens=fmean(len(example.prompt_ids) for example in examples),
        longest=max(map(len, examples)),
        origin="counted",
        num_words=len(data.trained_words),
    )


def _lies_here(settings: DataSettings) -> bool:
    files = [name for name in (settings.train_file, settings.validation_file) if name is not None]
    return all(Path(name).expanduser().exists() for name in files)


def _longest_allowed(settings: DataSettings) -> int:
    return min(settings.max_length, settings.cut_to or settings.max_length)
