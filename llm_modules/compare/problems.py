"""What the rows are trained on and asked: the same for all, and none of it both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from llm_modules.compare.plan import TEST_SEED, Plan
from llm_modules.data.dataset import split
from llm_modules.data.overlap import mark, standing_in
from llm_modules.data.templates import encode_prompt, with_template
from llm_modules.errors import UserError
from llm_modules.shapes import shape_of, tokenizer_of
from llm_modules.tasks import Problem, Task, get_task
from llm_modules.tasks.arithmetic import PAPER_QUESTIONS, Arithmetic
from llm_modules.training import TrainingData, load_data

SHARE_APART = 0.05  # of the training data, where the configuration keeps none for validation


@dataclass(frozen=True)
class Problems:
    """Training data and test problems of a plan.

    Args:
        plan: Of the comparison.
    """

    plan: Plan

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The source's, with the template that is trained."""
        model = self.plan.settings.model
        found = tokenizer_of(str(model.source), revision=model.source_revision)
        if found is None:
            raise UserError(f"the source {model.source!r} has no tokenizer beside its weights; add one")
        return with_template(found, self.plan.settings.data.template)

    @cached_property
    def vocab_size(self) -> int:
        """The source's."""
        model = self.plan.settings.model
        found: int = shape_of(str(model.source), revision=model.source_revision).get_text_config().vocab_size
        return found

    def data(self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> TrainingData:
        """Training examples and others, kept apart from them, on which rates are chosen."""
        found = load_data(self.plan.settings.data, tokenizer, vocab_size=vocab_size)
        if found.validation:
            return found
        training, apart = split(found.training, SHARE_APART, self.plan.settings.data.seed)
        return replace(found, training=training, validation=apart)

    @cached_property
    def task(self) -> Task:
        """Whose verifier judges."""
        name = self.plan.settings.data.task
        return get_task("jsonl" if name is None else name, data=self.plan.test, verifier=self.plan.verifier)

    @cached_property
    def test(self) -> list[Problem]:
        """What all rows are asked."""
        return self.task.test(self.plan.num, seed=TEST_SEED)

    @cached_property
    def shots(self) -> Task:
        """The task whose training problems are shown as examples and stand apart for choosing a prompt form."""
        settings = self.plan.settings.data
        if settings.train_file is None:
            return self.task
        name = "jsonl" if settings.task is None else settings.task
        return get_task(name, data=settings.train_file, verifier=self.plan.verifier)

    def apart(self, num: int) -> list[Problem]:
        """Training problems that no prompt form was made for, drawn by seed."""
        settings = self.plan.settings.data
        trained = self.shots.train(settings.num_examples, seed=settings.seed)
        share = settings.validation_fraction or SHARE_APART
        _, found = split(trained, share, settings.seed)
        return (found + trained)[: min(num, len(trained))]

    @property
    def asked(self) -> list[Problem]:
        """Questions answered side by side and not scored: they were chosen, not drawn."""
        if not self.plan.ask and isinstance(self.task, Arithmetic):
            return list(PAPER_QUESTIONS)
        texts = self.plan.ask or [problem.question for problem in PAPER_QUESTIONS]
        return [Problem(self.task.name, self.task.kinds[0], text, "", "") for text in texts]

    def refuse_shared(self, data: TrainingData) -> None:
        """Refuse test problems that are trained on.

        Raises:
            UserError: There are some; the message counts them.
        """
        seen = {mark(example.prompt_ids) for example in [*data.training, *data.validation]}
        prompts = [encode_prompt(problem.messages()[:1], self.tokenizer) for problem in self.test]
        shared = standing_in(seen, prompts)
        if shared:
            raise UserError(
                f"{len(shared)} of {len(prompts)} test problems stand in the training data too (the first is number "
                f"{shared[0]}: {self.test[shared[0] - 1].question!r}); take them out of one of the two"
            )


def question_prompt(prompt: Sequence[dict[str, str]] | str, question: str) -> list[dict[str, str]]:
    """A prompt with examples, made for another question; without them where they are no conversation."""
    asked = {"role": "user", "content": question}
    return [asked] if isinstance(prompt, str) else [*prompt[:-1], asked]
