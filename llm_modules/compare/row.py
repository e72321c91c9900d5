"""One row of the table, in a process of its own, so that its memory is its own: `python -m llm_modules.compare.row`."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from llm_modules.checksums import read_json, write_json
from llm_modules.compare.budget import Budget
from llm_modules.compare.competitors import competitor
from llm_modules.compare.plan import Plan
from llm_modules.compare.problems import Problems
from llm_modules.compare.rows import BY_NAME
from llm_modules.errors import UserError
from llm_modules.evaluation import judge
from llm_modules.machine import peak_gb


def row_file(folder: Path, name: str, seed: int) -> Path:
    """Where a row's figures lie."""
    return folder / "rows" / f"{name}-{seed}.json"


def run_row(folder: Path, name: str, *, number: int) -> dict[str, Any]:
    """Fit and judge one competitor; its figures are written when they are complete.

    Args:
        folder: Of the comparison.
        name: Of the row.
        number: Of the training run, from 0; later ones take the rate that the first has chosen.

    Returns:
        The figures. Where the row cannot be had here, `left_out` says why, and there are no others.
    """
    plan = Plan.load(folder)
    seed, file = plan.settings.training.seed + number, row_file(folder, name, number)
    rates = plan.rates
    if number and row_file(folder, name, 0).is_file():
        before = read_json(row_file(folder, name, 0))
        rates = (before["fit"]["rate"],) if before.get("fit", {}).get("rate") else rates
    problems = Problems(plan)
    found: dict[str, Any] = {"row": name, "seed": seed}
    try:
        with contextlib.redirect_stdout(None):  # what is said about the data has been said
            one = competitor(name, problems, models=folder / "models", seed=number)
            fit = one.fit(Budget.parse(plan.budget), rates=rates, seed=seed)
    except UserError as error:
        found |= {"left_out": str(error)}
        write_json(file, found)
        return found
    peak = peak_gb()
    if BY_NAME[name].is_trained:
        one.save(folder / "models" / f"{name}-{number}")
    asked = problems.test[: one.num_asked]
    losses = one.losses(problems.test)
    written = one.answers(asked, max_new_tokens=plan.max_new_tokens)
    side = one.answers(problems.asked, max_new_tokens=plan.max_new_tokens)
    judged = judge(problems.task, asked, written)
    trainable, resident = one.parameters()
    found |= {
        "fit": fit.as_dict(),
        "trainable": trainable,
        "resident": resident,
        "peak_gb": peak if BY_NAME[name].is_trained else peak_gb(),
        "losses": {"nats": losses.nats, "tokens": losses.tokens, "bytes": losses.bytes},
        "answers": written.texts,
        "correct": [verdict.correct for verdict in judged.verdicts],
        "form": [verdict.form for verdict in judged.verdicts],
        "tokens_per_s": written.tokens_per_s,
        "asked": side.texts,
    }
    write_json(file, found)
    return found


def main() -> None:
    """`python -m llm_modules.compare.row FOLDER NAME NUMBER`."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    folder, name, number = sys.argv[1:]
    try:
        run_row(Path(folder), name, number=int(number))
    except KeyboardInterrupt:  # who started it says so
        sys.exit(130)


if __name__ == "__main__":
    main()
