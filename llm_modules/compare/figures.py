"""From what each row wrote down to figures with intervals, each beside the pair's."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from llm_modules.bootstrap import bootstrap
from llm_modules.checksums import read_json
from llm_modules.compare.problems import Problems
from llm_modules.compare.row import row_file
from llm_modules.compare.rows import PAIR, Row
from llm_modules.evaluation import Score
from llm_modules.tasks import Problem

Found = dict[str, Any]


def rows_of(folder: Path, rows: Sequence[Row], *, seeds: int) -> dict[str, list[Found]]:
    """What is written down, by row, a record for each training run."""
    found: dict[str, list[Found]] = {}
    for row in rows:
        files = [row_file(folder, row.name, number) for number in range(seeds)]
        written = [read_json(file) for file in files if file.is_file()]
        if written:
            found[row.name] = written
    return found


def figures_of(
    found: Mapping[str, Sequence[Found]],
    rows: Sequence[Row],
    *,
    given: Mapping[str, Mapping[str, str]],
    problems: Problems,
) -> list[Found]:
    """A record of figures for each row that was measured or given, the pair's first."""
    measured = {name: runs for name, runs in found.items() if not any("left_out" in run for run in runs)}
    pair = measured[PAIR]
    figures = [
        {"row": row.name, "label": row.label, "given": False}
        | _measured(measured[row.name], pair)
        | _field_f1([run["answers"] for run in measured[row.name]], problems)
        for row in rows
        if row.name in measured
    ]
    answered = {model: _judged(answers, problems) for model, answers in given.items()}
    correct = _mean_correct(pair)
    return figures + [
        {"row": f"given:{model}", "label": f"{model} (given)", "given": True} | _accuracy(hits, form, correct)
        for model, (hits, form) in answered.items()
    ]


def _measured(runs: Sequence[Found], pair: Sequence[Found]) -> Found:
    """Means over training runs; intervals by problems."""
    first, fits = runs[0], [run["fit"] for run in runs]
    nats = [fmean(run["losses"]["nats"][index] for run in runs) for index in range(len(first["losses"]["nats"]))]
    tokens, sizes = first["losses"]["tokens"], first["losses"]["bytes"]
    bits = [loss / math.log(2) for loss in nats]
    pair_bits = [
        fmean(run["losses"]["nats"][index] for run in pair) / math.log(2)
        for index in range(len(pair[0]["losses"]["nats"]))
    ]
    more = [own - other for own, other in zip(bits, pair_bits, strict=True)]
    form = [fmean(run["form"][index] for run in runs) for index in range(len(first["form"]))]
    return _accuracy(dict(enumerate(_mean_correct(runs))), form, _mean_correct(pair)) | {
        "by_seed": [fmean(run["correct"]) for run in runs],
        "loss_nats": bootstrap(nats, tokens).as_dict(),
        "bits_per_byte": bootstrap(bits, sizes).as_dict(),
        "bits_more_than_pair": bootstrap(more, sizes).as_dict(),
        "trainable": first["trainable"],
        "resident": first["resident"],
        "training_s": fmean(fit["training"]["seconds"] for fit in fits),
        "training_flops": fmean(fit["training"]["flops"] for fit in fits),
        "reading_s": fmean(fit["reading"]["seconds"] for fit in fits),
        "tuning_s": fits[0]["tuning"]["seconds"],
        "updates": round(fmean(fit["updates"] for fit in fits)),
        "examples": round(fmean(fit["examples"] for fit in fits)),
        "batch_size": fits[0]["batch_size"],
        "rate": fits[0]["rate"],
        "trials": fits[0]["trials"],
        "chosen": fits[0]["chosen"],
        "last_loss": None if fits[0]["last_loss"] is None else fmean(fit["last_loss"] for fit in fits),
        "tokens_per_s": fmean(run["tokens_per_s"] for run in runs),
        "peak_gb": max(run["peak_gb"] for run in runs),
    }


def _field_f1(answers: Sequence[Sequence[str]], problems: Problems) -> Found:
    """F1 of all fields together, with its interval; nothing where answers have no fields.

    Args:
        answers: Of each training run, to the first problems.
        problems: Of the comparison.
    """
    if not problems.task.verify(problems.test[0], problems.test[0].response).fields:
        return {}
    fields = [
        [field for texts in answers for field in problems.task.verify(problem, texts[number]).fields]
        for number, problem in enumerate(problems.test[: len(answers[0])])
    ]
    offered = [sum(field.wanted + field.said for field in one) for one in fields]
    return {"field_f1": bootstrap([2 * sum(field.right for field in one) for one in fields], offered).as_dict()}


def _accuracy(correct: Mapping[int, float], form: Sequence[float], pair: Sequence[float]) -> Found:
    """Exact match with Wilson's interval, and how far it is from the pair's on the same problems.

    Args:
        correct: Number of a problem to the share of training runs that solved it.
        form: The same share in form, in any order.
        pair: The pair's share, of every problem that it was asked.
    """
    score = Score(sum(correct.values()), len(correct))
    both = [number for number in correct if number < len(pair)]
    return {
        "exact_match": {"value": score.value, "interval": list(score.interval)},
        "more_than_pair": bootstrap([correct[number] - pair[number] for number in both]).as_dict(),
        "form": fmean(form),
        "n": len(correct),
    }


def _mean_correct(runs: Sequence[Found]) -> list[float]:
    return [fmean(run["correct"][index] for run in runs) for index in range(len(runs[0]["correct"]))]


def _judged(answers: Mapping[str, str], problems: Problems) -> tuple[dict[int, float], list[float]]:
    verdicts = {
        number: problems.task.verify(problem, answers[problem.question])
        for number, problem in enumerate(problems.test)
        if problem.question in answers
    }
    return {number: float(found.correct) for number, found in verdicts.items()}, [
        float(found.form) for found in verdicts.values()
    ]


def side_by_side(
    found: Mapping[str, Sequence[Found]],
    rows: Sequence[Row],
    *,
    given: Mapping[str, Mapping[str, str]],
    problems: Problems,
) -> list[Found]:
    """Everyone's answers to the questions asked, of the first training run; judged where the right answer is known."""

    def shown(problem: Problem, text: str) -> Found:
        correct = problems.task.verify(problem, text).correct if problem.answer else None
        return {"text": text.strip(), "correct": correct}

    table = []
    for number, problem in enumerate(problems.asked):
        answers = {
            row.label: shown(problem, found[row.name][0]["asked"][number])
            for row in rows
            if row.name in found and "asked" in found[row.name][0]
        }
        answers |= {
            f"{model} (given)": shown(problem, texts[problem.question])
            for model, texts in given.items()
            if problem.question in texts
        }
        table.append({"question": problem.question, "expected": problem.answer, "answers": answers})
    return table
