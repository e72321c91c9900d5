"""What a task is: problems with one right answer each, and a judge that reads any model's text."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Problem:
    """One question with its only right answer.

    Args:
        task: name of the task that made the problem, e.g. ``"arithmetic"``.
        kind: sort of problem within the task, e.g. ``"sum"``; results are reported per kind.
        question: what the user asks.
        response: what the assistant should write: the training target, without chat template and end-of-text token.
        answer: the canonical final answer that `Task.verify` looks for.
    """

    task: str
    kind: str
    question: str
    response: str
    answer: str

    def messages(self) -> list[dict[str, str]]:
        """Return the problem as a conversation of one user and one assistant turn."""
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.response}]


@dataclass(frozen=True)
class Field:
    """One field of a structured answer.

    Args:
        name: of the field.
        wanted: the reference fills it.
        said: the text fills it.
        right: both do, with the same value.
    """

    name: str
    wanted: bool
    said: bool
    right: bool


@dataclass(frozen=True)
class Verdict:
    """What the judge found.

    Args:
        correct: the answer is right.
        form: the text has the form that the task asks for.
        fields: of a structured answer, one by one; empty where answers have no fields.
    """

    correct: bool
    form: bool
    fields: tuple[Field, ...] = ()


class Task(Protocol):
    """A data set whose answers can be checked. Equal arguments give equal problems."""

    name: str
    kinds: tuple[str, ...]
    num_shots: int | None
    """With so many demonstrations in its context the source alone is judged beside a model; `None`: it is not."""

    def train(self, num_examples: int | None, *, seed: int) -> list[Problem]:
        """Return training problems, `None`: as many as the task is meant to be trained with.

        None of them gives away a test problem of any seed.
        """
        ...

    def test(self, num_examples: int | None, *, seed: int) -> list[Problem]:
        """Return held-out problems, the kinds in equal shares; `None`: as many as make a fair test."""
        ...

    def few_shot_prompt(self, problem: Problem, num_examples: int, *, seed: int) -> list[dict[str, str]] | str:
        """Put demonstrations of the problem's kind, from the training problems, before its question.

        A list is a conversation for the model's chat template; a text is to be continued as it stands.
        """
        ...

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Judge what any model wrote in reply to `problem.question`."""
        ...
