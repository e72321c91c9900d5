"""A task whose problems stand in a file: which ones are for training and which for testing, the files decide."""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_modules.data.records import read_records
from llm_modules.errors import UserError
from llm_modules.tasks.base import Problem, Verdict


class FileTask(ABC):
    """The problems of one file; give the file for training to a training run, and another to an evaluation.

    Args:
        path: A `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder, or the id of a data set.

    Raises:
        MissingFileError: Nothing of this name is there.
        UserError: It is empty, or a record lacks what the task needs.
    """

    name: str
    needs: str
    """Fields that a record must have, for messages."""
    num_shots: int | None = None

    def __init__(self, path: str | Path):
        self.path = path
        records = read_records(str(path), needs=self.needs)
        self._problems = [
            self.problem(record, where=f"{path}, record {number}") for number, record in enumerate(records, start=1)
        ]
        if not self._problems:
            raise UserError(f"{path} is empty; it needs at least one record with {self.needs}")
        self.kinds = tuple(sorted({problem.kind for problem in self._problems}))

    @abstractmethod
    def problem(self, record: Mapping[str, Any], *, where: str) -> Problem:
        """Make a record a problem.

        Raises:
            UserError: Fields are missing or cannot be used.
        """

    @abstractmethod
    def verify(self, problem: Problem, text: str) -> Verdict:
        """Judge what any model wrote in reply to `problem.question`."""

    def train(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """The file's problems in its order; with `num_examples`, so many of them drawn by seed."""
        return self._drawn(self._problems, num_examples, seed=seed)

    def test(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """The same: whoever tests gives the file to test on."""
        return self._drawn(self._problems, num_examples, seed=seed)

    def few_shot_prompt(self, problem: Problem, num_examples: int, *, seed: int) -> list[dict[str, str]] | str:
        """Other problems of the same kind in the file, drawn by seed, as earlier turns."""
        others = [other for other in self._problems if other.kind == problem.kind and other != problem]
        shots = self._drawn(others, num_examples, seed=seed)
        return [turn for shot in shots for turn in shot.messages()] + problem.messages()[:1]

    @staticmethod
    def _drawn(problems: list[Problem], num_examples: int | None, *, seed: int) -> list[Problem]:
        if num_examples is None or num_examples >= len(problems):
            return list(problems)
        chosen = sorted(random.Random(seed).sample(range(len(problems)), num_examples))
        return [problems[index] for index in chosen]


def text_of(record: Mapping[str, Any], *names: str, where: str) -> str:
    """The first of the named fields that is filled, as text.

    Raises:
        UserError: The record has none of them, or it is no text and no number.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where} is a {type(record).__name__}, not a mapping of fields; write one")
    for name in names:
        value = record.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"{where}: `{name}` is a {type(value).__name__}; write text or a number")
        return str(value)
    has = ", ".join(str(field) for field, value in record.items() if value not in (None, "")) or "none"
    wanted = " or ".join(f"`{name}`" for name in names)
    raise UserError(f"{where} lacks {wanted}; it has the fields: {has}. Add it, or rename the field that holds it")
