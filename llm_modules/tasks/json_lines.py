"""The task `jsonl`: questions and answers of any file, judged by a verifier that the user names.

| verifier | a text is right if |
|---|---|
| `exact` | it is the answer, save white space around it |
| `numeric` | its final number is the answer's (math-verify) |
| `regex` | the answer, a regular expression, is found in it |
| `choice` | it takes the right one of `choices`, by its letter or by its words |
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from llm_modules.errors import UserError
from llm_modules.tasks import choices
from llm_modules.tasks.base import Problem, Verdict
from llm_modules.tasks.from_file import FileTask, text_of


@dataclass(frozen=True)
class Verifier:
    """How answers are judged.

    Args:
        refusal: what keeps an answer from being judged so, or `None`.
        accepts: whether the problem is answered by the text.
    """

    refusal: Callable[[str], str | None]
    accepts: Callable[[Problem, str], bool]


def _numeric() -> Verifier:
    from llm_modules.tasks import numeric  # needs a package that the others do not

    return Verifier(
        refusal=lambda answer: None if numeric.is_number(answer) else f"{answer!r} holds no number",
        accepts=lambda problem, text: numeric.is_equal(problem.answer, text),
    )


def _pattern_fault(answer: str) -> str | None:
    try:
        re.compile(answer)
    except re.error as error:
        return f"{answer!r} is no regular expression ({error})"
    return None


VERIFIERS: dict[str, Callable[[], Verifier]] = {
    "exact": lambda: Verifier(lambda _: None, lambda problem, text: text.strip() == problem.answer.strip()),
    "numeric": _numeric,
    "regex": lambda: Verifier(_pattern_fault, lambda problem, text: re.search(problem.answer, text) is not None),
    "choice": lambda: Verifier(
        lambda _: None, lambda problem, text: choices.taken(problem.question, text) == problem.answer
    ),
}


class JsonLines(FileTask):
    """Records with `question` (or `prompt`) and `answer` (or `completion`); `choices` for multiple choice.

    `response` is what a model should write, where that is not the answer itself; `kind` groups the results.

    Args:
        path: Of the records.
        verifier: One of `VERIFIERS`.
    """

    name = "jsonl"
    needs = "question and answer"

    def __init__(self, path: str | Path, *, verifier: str):
        self._chosen = verifier
        self._verifier = VERIFIERS[verifier]()
        super().__init__(path)

    def problem(self, record: Mapping[str, Any], *, where: str) -> Problem:
        """Check that the verifier can judge the answer."""
        question = text_of(record, "question", "prompt", where=where)
        answer = text_of(record, "answer", "completion", where=where)
        if self._chosen == "choice":
            offered = _choices_of(record, where=where)
            answer = _letter_of(answer, offered, where=where)
            question = choices.ask(question, offered)
        if refusal := self._verifier.refusal(answer):
            raise UserError(f"{where}: the answer {refusal}; correct it or choose another verifier")
        response = str(record.get("response") or answer)
        return Problem(self.name, str(record.get("kind") or self.name), question, response, answer)

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Ask the verifier; any text that says something has the form."""
        return Verdict(correct=self._verifier.accepts(problem, text), form=bool(text.strip()))


def _choices_of(record: Mapping[str, Any], *, where: str) -> list[str]:
    offered = record.get("choices")
    if not isinstance(offered, list) or not 2 <= len(offered) <= len(ascii_uppercase):
        raise UserError(f"{where} lacks `choices`; the verifier choice needs a list of 2 to {len(ascii_uppercase)}")
    if not all(isinstance(choice, str) and choice.strip() and "\n" not in choice for choice in offered):
        raise UserError(f"{where}: `choices` must each be one line of text")
    if len({choice.casefold() for choice in offered}) < len(offered):
        raise UserError(f"{where}: `choices` repeats itself; offer different ones")
    return offered


def _letter_of(answer: str, offered: list[str], *, where: str) -> str:
    """The answer as its letter: given so, or as the words of a choice."""
    letters = ascii_uppercase[: len(offered)]
    if answer in offered:
        return letters[offered.index(answer)]
    if len(answer) == 1 and answer in letters:
        return answer
    raise UserError(f"{where}: the answer {answer!r} is none of the choices and no letter of A to {letters[-1]}")
