"""Judge models on a task: exact match with 95 % intervals, form, speed; per kind of problem."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from transformers import PreTrainedTokenizerBase

from llm_modules.data.templates import encode_prompt
from llm_modules.processes import gathered, num_processes, process_index
from llm_modules.tasks import Field, Problem, Task, Verdict
from llm_modules.tasks.json_fields import f1
from llm_modules.writing import Writing, in_turn, write

Z_95 = 1.959964


@dataclass(frozen=True)
class Score:
    """A share of right answers.

    Args:
        hits: How many were right; the mean of several runs may be no whole number.
        n: How many were asked.
    """

    hits: float
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

    def field_f1(self) -> dict[str, float]:
        """F1 of all fields together (`all`), then of each; nothing where answers have no fields."""
        by_name: dict[str, list[Field]] = {}
        for verdict in self.verdicts:
            for field in verdict.fields:
                by_name.setdefault(field.name, []).append(field)
        if not by_name:
            return {}
        wanted = {name: f1(fields) for name, fields in by_name.items() if any(field.wanted for field in fields)}
        return {"all": f1([field for fields in by_name.values() for field in fields])} | wanted

    def as_dict(self) -> dict:
        """For JSON."""
        fields = self.field_f1()
        figures: dict[str, Any] = {
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
        return figures | {"field_f1": fields} if fields else figures


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

    Several processes share the problems; each of them gets all answers.

    Args:
        model: Anything with transformers' `generate`.
        task: Whose verifier judges.
        problems: What to ask.
        tokenizer: Its chat template must be the one the model was trained in.
        **write_kwargs: As for `writing.write`; `max_new_tokens` is needed.
    """
    prompts = [encode_prompt(problem.messages()[:1], tokenizer) for problem in problems]
    own = prompts[process_index() :: num_processes()]
    written = gathered(write(model, own, tokenizer, **write_kwargs))
    return judge(task, problems, in_turn(written))


def explain_nothing_right(task: Task, found: Evaluation) -> str | None:
    """Where no answer at all was right: whether the verifier or the model is to blame; else `None`."""
    if found.exact.hits:
        return None
    problem, text, _ = next(found.answers())
    shown = f"the first answer should be {_short(problem.answer)} and was {_short(text)}"
    if any(task.verify(problem, problem.response).correct for problem in found.problems):
        return f"none of {found.exact.n} answers is right, while reference answers are accepted; {shown}"
    return (
        f"the verifier of {task.name} accepted none of {found.exact.n} answers, nor any of the reference answers: it "
        f"never matches; correct the answers or choose another verifier ({shown})"
    )


def _short(text: str, limit: int = 60) -> str:
    shown = repr(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
