"""Answers of models that cannot run here, from a file: judged as all others are, and marked as given."""

from collections.abc import Sequence
from pathlib import Path

from llm_modules.data.records import read_records
from llm_modules.errors import UserError
from llm_modules.tasks import Problem
from llm_modules.tasks.from_file import text_of

NEEDS = "question and answer"


def read_answers(file: Path, *, test: Sequence[Problem], asked: Sequence[Problem]) -> dict[str, dict[str, str]]:
    """Answers by model, then by question.

    Args:
        file: Records with `question` and `answer`, and `model` where there are several; else its name is the file's.
        test: What all rows are asked; not all of it need be answered.
        asked: Questions that are shown and not scored.

    Raises:
        UserError: For questions that nobody is asked, and for two answers of a model to one.
    """
    known = {problem.question for problem in [*test, *asked]}
    found: dict[str, dict[str, str]] = {}
    unknown: list[tuple[int, str]] = []
    for number, record in enumerate(read_records(str(file), needs=NEEDS), start=1):
        where = f"{file}, record {number}"
        question = text_of(record, "question", where=where)
        answer = text_of(record, "answer", where=where)
        answers = found.setdefault(str(record.get("model") or file.stem), {})
        if question not in known:
            unknown.append((number, question))
        elif question in answers:
            raise UserError(f"{where} answers {question!r} a second time; keep one answer of each model to a question")
        answers[question] = answer
    if unknown:
        number, question = unknown[0]
        raise UserError(
            f"{file}: {len(unknown)} of its questions are not asked here (the first is record {number}: {question!r}); "
            "the questions stand in questions.jsonl of the comparison’s folder, letter by letter"
        )
    scored = {problem.question for problem in test}
    for model, answers in found.items():
        if not scored & answers.keys():
            raise UserError(f"{file}: {model} answers none of the test questions; nothing of it could be judged")
    return found
