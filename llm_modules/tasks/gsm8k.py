"""The task `gsm8k`: school problems with worked steps, whose final line is `#### answer`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_modules.errors import UserError
from llm_modules.tasks import numeric
from llm_modules.tasks.base import Problem, Verdict
from llm_modules.tasks.from_file import FileTask, text_of

MARK = "####"
_ASIDE = re.compile(r"<<[^>]*>>")  # the data repeat each calculation for a calculator
_FORM = re.compile(r"\S.*\n#### -?[\d.,]+", re.DOTALL)


class Gsm8k(FileTask):
    """The problems of a GSM8K file; the response is the working as published, without the asides for a calculator."""

    name = "gsm8k"
    needs = "question and answer (worked steps, then `#### number`)"

    def problem(self, record: Mapping[str, Any], *, where: str) -> Problem:
        """Take the answer from the last line of the working."""
        question, working = (text_of(record, field, where=where) for field in ("question", "answer"))
        steps, mark, answer = working.rpartition(MARK)
        answer = answer.strip().replace(",", "")
        if not mark or not re.fullmatch(r"-?\d+(?:\.\d+)?", answer):
            raise UserError(f"{where}: `answer` does not end with a line `{MARK} number`; add it")
        response = f"{_ASIDE.sub('', steps).strip()}\n{MARK} {answer}"
        return Problem(self.name, self.name, question, response, answer)

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Judge what follows the last `####`, or the final answer of a text without it."""
        _, mark, final = text.rpartition(MARK)
        said = final.strip() if mark else text
        return Verdict(correct=numeric.is_equal(problem.answer, said), form=_FORM.fullmatch(text.strip()) is not None)


def from_path(path: str | Path) -> Gsm8k:
    """The task on a file."""
    return Gsm8k(path)
