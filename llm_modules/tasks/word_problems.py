"""The task `math-word-problems`: write the equation of a word problem, which is then worked out and held to the answer.

Files have the columns of the published sets (ASDiv-A, MAWPS, SVAMP; arXiv 2103.07191): `Question` with the slots
`number0`, `number1`, …, `Numbers` to fill them, a prefix `Equation`, and the `Answer`. A question is asked with its
numbers in place, each with a mark; the response is the equation of these marks: `12 (A) boxes of 9 (B) pens`, `A*B`.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_modules.errors import UserError
from llm_modules.tasks import marks
from llm_modules.tasks.base import Problem, Verdict
from llm_modules.tasks.equations import OPERATORS, agree, evaluate, from_prefix, has_form, said_value, tidy
from llm_modules.tasks.from_file import FileTask, text_of

_KINDS = {0: "no step", 1: "one step", 2: "two steps"}


class WordProblems(FileTask):
    """Word problems of a file, judged by execution: the written equation must come to the answer."""

    name = "math-word-problems"
    needs = "Question, Numbers, Equation and Answer"

    def problem(self, record: Mapping[str, Any], *, where: str) -> Problem:
        """Put the numbers and their marks in, and turn the equation into one of marks."""
        question, equation, answer = (
            text_of(record, column, where=where) for column in ("Question", "Equation", "Answer")
        )
        numbers = [tidy(number, where=where) for number in text_of(record, "Numbers", where=where).split()]
        letters = marks.by_size(numbers, where=where)
        # ASDiv and SVAMP are in lower case, MAWPS is not; a small model need not learn every word twice
        question = marks.put_in(question.lower(), numbers, letters, where=where)
        expression = from_prefix(equation, letters, where=where)
        if evaluate(marks.fill(expression, dict(zip(letters, numbers, strict=True)))) is None:
            raise UserError(f"{where}: the equation {equation} has no value; correct it")
        num_steps = sum(part in OPERATORS for part in equation.split())
        kind = _KINDS.get(num_steps, "more steps")
        return Problem(self.name, kind, question, expression, tidy(answer, where=where))

    def train(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Without the problems whose own equation does not come to their answer; how many is said in a warning."""
        sound = [problem for problem in self._problems if self.verify(problem, problem.response).correct]
        if len(sound) < len(self._problems):
            warnings.warn(
                f"{self.path}: {len(self._problems) - len(sound)} of {len(self._problems)} equations do not come to "
                "the answer beside them; these problems are left out of training",
                stacklevel=2,
            )
        if not sound:
            raise UserError(f"{self.path}: no equation comes to the answer beside it; correct the file")
        return self._drawn(sound, num_examples, seed=seed)

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Work the written equation out; what is said in words is judged by its last number."""
        numbers = marks.of(problem.question)
        said = said_value(text, numbers)
        correct = said is not None and agree(said, float(problem.answer))
        return Verdict(correct=correct, form=has_form(text, numbers))


def from_path(path: str | Path) -> WordProblems:
    """The task on a file."""
    return WordProblems(path)
