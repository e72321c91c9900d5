"""The report of a sweep: one table and one picture, as a web page, Markdown and JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from llm_modules.bootstrap import Estimate, paired
from llm_modules.checksums import write_json
from llm_modules.evaluation import Score
from llm_modules.files import write_text
from llm_modules.pages import Cell, Table, bullets, embedded, share, templates
from llm_modules.plots import interval_figure, save_figure
from llm_modules.sweep_file import BASE, Sweep

PICTURE = "points.png"
WORDS = {
    "point": "one setting of what is swept; all else is as in the base",
    "exact match": "the share of right answers, the mean over seeds, with the 95 % interval (Wilson) that the number "
    "of questions gives; further seeds narrow nothing, they show how far the figure moves",
    "seeds": "the lowest and the highest exact match of a single seed",
    "more than the base": "the difference in exact match on the same questions, over the seeds that both have, in "
    "points of a hundred, with the 95 % interval of drawing the questions anew (paired bootstrap); of twenty points "
    "that change nothing one interval will miss 0, and another training run may move a figure further than its "
    "interval",
    "F1": "of all fields of the answers together, where answers have fields",
    "form": "the share of answers in the form that the task asks for",
    "loss": "of the validation examples, which are no test questions, in nats per token; choose by it, so that the "
    "test decides nothing",
    "seconds": "of a run: the source's reading, training and validation, by the clock; after an interruption only what "
    "came then (≥)",
}
"""What the table means by its words."""


def rows(found: Sweep, figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row of figures for each point that has any, the means over its seeds.

    Args:
        found: The sweep.
        figures: Of the runs that have ended.
    """
    by_point: dict[str, list[Mapping[str, Any]]] = {point.name: [] for point in found.points}
    for one in figures:
        if "failed" not in one:
            by_point[one["point"]].append(one)
    base = by_point[BASE]
    return [_row(point.name, point.changes, runs, base) for point in found.points if (runs := by_point[point.name])]


def _row(
    name: str, changes: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"point": name, "changes": dict(changes), **averaged(runs)}
    if name != BASE and (more := more_than(base, runs)):
        row["more_than_base"] = more.as_dict()
    losses = [one["validation_loss_nats"] for one in runs]
    return row | {
        "form": fmean(one["form"] for one in runs),
        **({"field_f1": fmean(one["field_f1"]["all"] for one in runs)} if "field_f1" in runs[0] else {}),
        "validation_loss_nats": None if None in losses else fmean(losses),
        "trained_parameters": runs[0]["trained_parameters"],
        "train_s": fmean(one["train_s"] for one in runs),
        "resumed": any(one["resumed"] for one in runs),
        "tokens_per_s": fmean(one["tokens_per_s"] for one in runs),
        "peak_memory_gb": max(one["peak_memory_gb"] for one in runs),
    }


def averaged(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Exact match of some seeds: of each, and their mean with the interval of so many questions."""
    right = np.mean([one["correct"] for one in runs], axis=0)
    score = Score(float(right.sum()), len(right))
    return {
        "seeds": {str(one["seed"]): one["exact_match"] for one in sorted(runs, key=lambda one: one["seed"])},
        "exact_match": {"value": score.value, "interval": list(score.interval), "n": score.n},
    }


def more_than(base: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> Estimate | None:
    """How much more often runs are right than those of a base, over the seeds that both have; `None` without any."""
    return paired(*({one["seed"]: one["correct"] for one in some} for some in (runs, base)))


def table(found: Sweep, figures: Sequence[Mapping[str, Any]]) -> Table:
    """The one table."""
    several = len(found.file.seeds) > 1
    has_fields = any("field_f1" in one for one in figures)
    header = ["", "exact match", *["seeds"] * several, "more than the base", *["F1"] * has_fields, "form", "loss"]
    header += ["parameters", "seconds", "tokens/s", "GB"]
    lines = [
        [
            Cell(row["point"]),
            share(row["exact_match"], decimals=0),
            *([Cell(_seeds(row["seeds"]))] if several else []),
            difference(row.get("more_than_base")),
            *([Cell(f"{row['field_f1']:.1%}")] if has_fields else []),
            Cell(f"{row['form']:.1%}"),
            Cell("" if row["validation_loss_nats"] is None else f"{row['validation_loss_nats']:.4f}"),
            Cell(f"{row['trained_parameters']:,}"),
            Cell(f"{'≥ ' * row['resumed']}{row['train_s']:.0f}"),
            Cell(f"{row['tokens_per_s']:,.0f}"),
            Cell(f"{row['peak_memory_gb']:.1f}"),
        ]
        for row in rows(found, figures)
    ]
    questions = max((len(one["correct"]) for one in figures if "correct" in one), default=0)
    return Table(f"{questions} questions of {found.judging.task}, 95% intervals", header, lines)


def sentences(found: Sweep, figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """How far the sweep has come, what the base is, and what failed."""
    judging = found.judging
    base = found.file.base if isinstance(found.file.base, str) else "the sections in the sweep file"
    seeds = ", ".join(map(str, found.file.seeds))
    told = [
        f"{len(figures)} of {len(found.runs)} runs have ended; seeds {seeds}; questions of seed {judging.seed}.",
        f"The base is {base}" + (f" with {', '.join(found.file.common)}." if found.file.common else "."),
    ]
    if found.same_as_base:
        told.append(f"It is also {'; '.join(found.same_as_base)}.")
    told += [f"Failed: {one['point']}, seed {one['seed']}: {one['failed']}" for one in figures if "failed" in one]
    return told


def summary(found: Sweep, figures: Sequence[Mapping[str, Any]]) -> str:
    """Table and sentences, as plain text."""
    return "\n\n".join([table(found, figures).plain(), bullets(sentences(found, figures))])


def write_report(found: Sweep, figures: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write `table.json`, `table.md`, the picture, and `sweep.html`, which holds it all.

    Args:
        found: The sweep.
        figures: Of the runs that have ended.
        folder: Where they go.

    Returns:
        The page.
    """
    lines = rows(found, figures)
    failed = [{key: one[key] for key in ("point", "seed", "failed")} for one in figures if "failed" in one]
    told = {"sweep": found.path.stem, "task": found.judging.task, "points": lines, "failed": failed}
    write_json(folder / "table.json", told)
    images = {}
    if lines:
        figure = interval_figure(
            {row["point"]: (row["exact_match"]["value"], *row["exact_match"]["interval"]) for row in lines},
            title=f"{found.path.stem}: right answers of each point",
            meaning="exact match with 95% intervals; small dots: single seeds; the line: the base",
            line=next((row["exact_match"]["value"] for row in lines if row["point"] == BASE), 0.0),
            dots={row["point"]: list(row["seeds"].values()) for row in lines if len(row["seeds"]) > 1},
        )
        save_figure(figure, folder / PICTURE)
        images = embedded(folder, [PICTURE])
    contents = {
        "name": found.path.stem,
        "table": table(found, figures),
        "sentences": sentences(found, figures),
        "words": WORDS,
        "images": images,
    }
    environment, page = templates(), folder / "sweep.html"
    write_text(folder / "table.md", environment.get_template("sweep.md.jinja").render(contents))
    write_text(page, environment.get_template("sweep.html.jinja").render(contents))
    return page


def _seeds(by_seed: Mapping[str, float]) -> str:
    low, high = min(by_seed.values()), max(by_seed.values())
    return f"{low * 100:.0f}–{high * 100:.0f}, {len(by_seed)}"


def difference(estimate: Mapping[str, Any] | None) -> Cell:
    """Points of a hundred more or fewer, with their interval; empty where there is nothing to compare."""
    if estimate is None:
        return Cell("")
    low, high = (f"{bound * 100:+z.0f}" for bound in estimate["interval"])
    return Cell(f"{estimate['value'] * 100:+z.1f}", f"{low} to {high}")
