"""Judge models on a task: exact match with 95 % intervals, form, speed; per kind of problem."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from transformers import PreTrainedTokenizerBase

from llm_modules.data.templates import encode_prompt
from llm_modules.tasks import Problem, Task, Verdict
from llm_modules.writing import Writing, write

Z_95 = 1.959964


@dataclass(frozen=True)
class Score:
    """A share of right answers.

    Args:
        hits: How many were right.
        n: How many were asked.
    """

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, which stays within [0, 1] and does not collapse at 0 or n."""
        centre = (self.hits + Z_95**2 / 2) / (self.n + Z_95**2)
        spread = Z_95 / (self.n + Z_95**2) * sqrt(self.hits * (self.n - self.hits) / self.n + Z_95**2 / 4)
        low = centre - spread if self.hits else 0.0  # exactly, whatever the rounding
        high = centre + spread if self.hits < self.n else 1.0
        return low, high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.0%}–{high:.0%}), {self.hits}/{self.n}"


@dataclass(frozen=True)
class Evaluation:
    """What a model scored on a list of problems.

    Args:
        exact: Right answers.
        form: Answers in the required form.
        by_kind: Right answers per kind of problem.
        writing: The answers themselves, and how fast they came.
        problems: What was asked.
        verdicts: On each answer.
    """

    exact: Score
    form: Score
    by_kind: Mapping[str, Score]
    writing: Writing
    problems: Sequence[Problem]
    verdicts: Sequence[Verdict]

    def answers(self) -> Iterator[tuple[Problem, str, bool]]:
        """Each problem with what was written and whether it is right."""
        for problem, text, verdict in zip(self.problems, self.writing.texts, self.verdicts, strict=True):
            yield problem, text, verdict.correct

    def part(self, start: int, stop: int) -> "Evaluation":
        """The same for some of the problems; the speed stays that of the whole."""
        writing = replace(self.writing, texts=self.writing.texts[start:stop])
        return tally(self.problems[start:stop], self.verdicts[start:stop], writing)

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            "exact_match": self.exact.value,
            "interval": list(self.exact.interval),
            "n": self.exact.n,
            "form": self.form.value,
            "tokens_per_s": self.writing.tokens_per_s,
            "by_kind": {
                kind: {"exact_match": score.value, "interval": list(score.interval), "n": score.n}
                for kind, score in self.by_kind.items()
            },
        }


def judge(task: Task, problems: Sequence[Problem], writing: Writing) -> Evaluation:
    """Hold written answers against the task's verifier."""
    verdicts = [task.verify(problem, text) for problem, text in zip(problems, writing.texts, strict=True)]
    return tally(problems, verdicts, writing)


def tally(problems: Sequence[Problem], verdicts: Sequence[Verdict], writing: Writing) -> Evaluation:
    """Count verdicts, in all and per kind of problem."""
    kinds: dict[str, list[bool]] = {}
    for problem, verdict in zip(problems, verdicts, strict=True):
        kinds.setdefault(problem.kind, []).append(verdict.correct)
    return Evaluation(
        exact=Score(sum(verdict.correct for verdict in verdicts), len(verdicts)),
        form=Score(sum(verdict.form for verdict in verdicts), len(verdicts)),
        by_kind={kind: Score(sum(kinds[kind]), len(kinds[kind])) for kind in sorted(kinds)},
        writing=writing,
        problems=problems,
        verdicts=verdicts,
    )


def evaluate(
    model, task: Task, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, **write_kwargs
) -> Evaluation:
    """Ask a model every problem, each as a conversation of one turn in the tokenizer's chat template.

    Args:
        model: Anything with transformers' `generate`.
        task: Whose verifier judges.
        problems: What to ask.
        tokenizer: Its chat template must be the one the model was trained in.
        **write_kwargs: As for `writing.write`; `max_new_tokens` is needed.
    """
    prompts = [encode_prompt(problem.messages()[:1], tokenizer) for problem in problems]
    return judge(task, problems, write(model, prompts, tokenizer, **write_kwargs))
