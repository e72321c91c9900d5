"""All of `llm-modules compare`: a process for each row, what it found kept, the report at the end."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_modules.checksums import read_json, write_json
from llm_modules.compare.budget import Budget
from llm_modules.compare.figures import figures_of, rows_of, side_by_side
from llm_modules.compare.given import read_answers
from llm_modules.compare.plan import Plan
from llm_modules.compare.problems import Problems
from llm_modules.compare.report import summary, write_report
from llm_modules.compare.row import row_file
from llm_modules.compare.rows import PAIR, Row, chosen_rows
from llm_modules.compare.trained import TRIAL_SHARE
from llm_modules.errors import UserError
from llm_modules.files import write_text
from llm_modules.folders import alone_in
from llm_modules.machine import machine
from llm_modules.training import TrainingData

PROGRAM_S = 20.0  # what a row takes beside its budget, before the first has told
RESULTS = "comparison.json"


def compare(plan: Plan, *, rows: Sequence[str], answers: Path | None, output: Path) -> dict[str, Any]:
    """Run the rows that are not finished in `output`, then write figures, page and pictures.

    Args:
        plan: What is compared.
        rows: Names of the rows; all if empty.
        answers: File of answers that were given elsewhere.
        output: Folder of the comparison. A finished row is kept there, and not run again.

    Returns:
        The figures, as `comparison.json` holds them.

    Raises:
        UserError: For a plan that cannot be run, see the messages; or if the pair's own row cannot be had.
    """
    plan.check()
    chosen = chosen_rows(rows, plan.settings.model)
    problems = Problems(plan)
    given = {} if answers is None else read_answers(answers, test=problems.test, asked=problems.asked)
    data = problems.data(problems.tokenizer, vocab_size=problems.vocab_size)
    problems.refuse_shared(data)
    plan.claim(output)
    with alone_in(output, what="comparison"):
        return _compare(plan, chosen, problems, data, given, output)


def _compare(
    plan: Plan, chosen: Sequence[Row], problems: Problems, data: TrainingData, given: Mapping[str, Mapping[str, str]],
    output: Path,
) -> dict[str, Any]:  # fmt: skip
    asked = [{"question": one.question} for one in [*problems.test, *problems.asked]]
    write_text(output / "questions.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in asked))
    out_of_time = _run_rows(plan, chosen, output)
    found = rows_of(output, chosen, seeds=plan.seeds)
    left_out = {name: runs[0]["left_out"] for name, runs in found.items() if "left_out" in runs[0]} | out_of_time
    results = {
        "task": problems.task.name,
        "plan": json.loads(plan.model_dump_json(exclude_unset=True)),
        "machine": machine(),
        "minutes": sum(run.get("seconds", 0.0) for runs in found.values() for run in runs) / 60,
        "training_examples": len(data.training),
        "figures": figures_of(found, chosen, given=given, problems=problems),
        "left_out": {row.label: left_out[row.name] for row in chosen if row.name in left_out},
        "asked": side_by_side(found, chosen, given=given, problems=problems),
    }
    write_json(output / RESULTS, results)
    page = write_report(results, output)
    print("\n" + summary(results))
    print(f"\nreport:  {page}\nfigures: {output / RESULTS}")
    return results


def _run_rows(plan: Plan, rows: Sequence[Row], output: Path) -> dict[str, str]:
    """Run what is missing, the pair first; returns the rows for which there was no time."""
    out_of_time: dict[str, str] = {}
    runs = [(row, number) for row in rows for number in range(plan.seeds)]
    for index, (row, number) in enumerate(runs):
        file, done = row_file(output, row.name, number), _finished(output, runs[:index])
        name = f"{index + 1} of {len(runs)}: {row.label}" + f", seed {number}" * (plan.seeds > 1)
        if file.is_file() and "left_out" not in read_json(file):
            print(f"== {name}: finished before")
            continue
        spent, needed = sum(done.values()), _foreseen(plan, row, done)
        if plan.limit_s is not None and row.name != PAIR and spent + needed > plan.limit_s:
            out_of_time[row.name] = (
                f"no time: {spent:.0f} of {plan.limit_s:.0f} s are spent, and it would need some {needed:.0f}"
            )
            print(f"== {name}: left out, {out_of_time[row.name]}")
            continue
        left = sum(_foreseen(plan, other, done) for other, _ in runs[index:])
        print(f"\n== {name} (about {left / 60:.0f} minutes left)", flush=True)
        said = _run_one(row, number, output)
        if said is not None and row.name == PAIR:
            file.unlink(missing_ok=True)
            raise UserError(said)
        if said is not None:
            print(f"left out: {said}")
    return out_of_time


def _run_one(row: Row, number: int, output: Path) -> str | None:
    """A row in a process of its own; why it was left out, if it was."""
    file = row_file(output, row.name, number)
    file.unlink(missing_ok=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "llm_modules.compare.row", str(output), row.name, str(number)]
    ended = subprocess.run(command, check=False).returncode  # noqa: S603 - our own module
    found: dict[str, Any] = {"row": row.name}
    if file.is_file():
        found = read_json(file)
    else:
        found["left_out"] = f"its process ended with code {ended}" + ": out of memory, or stopped" * (ended < 0)
    write_json(file, found | {"seconds": time.perf_counter() - start})
    return found.get("left_out")


def _finished(output: Path, runs: Sequence[tuple[Row, int]]) -> dict[tuple[str, int], float]:
    """Seconds of the runs so far."""
    files = {(row.name, number): row_file(output, row.name, number) for row, number in runs}
    return {key: read_json(file).get("seconds", 0.0) for key, file in files.items() if file.is_file()}


def _foreseen(plan: Plan, row: Row, done: Mapping[tuple[str, int], float]) -> float:
    """Seconds that a row will take, judged by its budget and by what the rows before took beside theirs."""
    budget = Budget.parse(plan.budget)
    known = budget.amount if budget.unit == "s" else 0.0
    own = known * (1 + TRIAL_SHARE * len(plan.rates) * (len(plan.rates) > 1))
    beside = [seconds - own for seconds in done.values() if seconds > own]
    overhead = max(beside[-3:], default=PROGRAM_S)
    return overhead + (own if row.is_trained else 0.0)
