"""The report of a comparison: one set of tables and sentences, printed, as a web page and as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_modules.compare.budget import Budget
from llm_modules.compare.pictures import write_pictures
from llm_modules.compare.rows import BY_NAME, PAIR
from llm_modules.compare.trained import TRIAL_SHARE
from llm_modules.files import write_text
from llm_modules.pages import Cell, Table, bullets, embedded, templates
from llm_modules.report import gist

WORDS = {
    "exact match": "the share of held-out problems whose final answer is right, with Wilson’s 95% interval",
    "more than the pair": "difference of exact match on the same problems, with the interval that drawing the problems "
    "anew gives (paired bootstrap, 95%); one that does not hold 0 shows a difference",
    "form": "the share of answers that have the form which the training data have",
    "F1 of fields": "of all fields of the answers together: twice the right ones over those wanted and those said",
    "nats per token": "loss of the right answers, given word for word, over their tokens and the full vocabulary",
    "bits per byte": "the same loss over the bytes of the answers’ text, which compares across tokenizers",
    "trained": "parameters that training changes",
    "resident": "parameters in memory while it answers",
    "seconds": "what counts against the budget: the reading (of source or teacher, a column of its own) and the "
    "updates, not loading and judging",
    "tuning": "seconds in which the rates were tried, beside the budget and alike for all",
    "FLOPs": "counted by torch on a small batch of the row, forward and backward, times the tokens it met",
    "tokens/s": "written in answering the test problems, all in one batch of at most 128",
    "peak GB": "resident memory of the row’s own process at its largest: while it trained, or, where nothing trains, "
    "while it answered",
    "given": "answers that somebody handed in; judged here, but not written here: nothing else is known about them",
}
"""What the tables mean by their words."""


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Quality, training, answering."""
    figures = results["figures"]
    has_fields = any("field_f1" in row for row in figures)
    quality = [
        [
            Cell(row["label"]),
            _share(row["exact_match"]),
            Cell("") if row["row"] == PAIR else _points(row["more_than_pair"]),
            Cell(f"{row['form']:.0%}"),
            *([_share(row["field_f1"]) if "field_f1" in row else Cell("")] if has_fields else []),
            Cell("") if row["given"] else _figure(row["loss_nats"]),
            Cell("") if row["given"] else _figure(row["bits_per_byte"]),
            Cell(str(row["n"])),
        ]
        for row in figures
    ]
    header = ["", "exact match", "more than the pair", "form", *["F1 of fields"] * has_fields]
    header += ["nats per token", "bits per byte", "n"]
    measured = [row for row in figures if not row["given"]]
    training = [[Cell(row["label"]), *_training(row)] for row in measured if row["updates"]]
    trained = ["", "trained", "seconds", "reading", "tuning", "10¹² FLOPs", "updates", "batch", "rate"]
    answering = [
        [
            Cell(row["label"]),
            Cell(f"{row['resident']:,}"),
            Cell(f"{row['tokens_per_s']:,.0f}"),
            Cell(f"{row['peak_gb']:.1f}"),
        ]
        for row in measured
    ]
    return [
        Table(f"Quality: held-out problems of {results['task']}, 95% intervals", header, quality),
        Table("Training", trained, training),
        Table("Answering, and memory", ["", "resident", "tokens/s", "peak GB"], answering),
    ]


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What the figures say."""
    pair, *others = results["figures"]
    low, high = pair["exact_match"]["interval"]
    said = [f"The pair solves {pair['exact_match']['value']:.0%} of {pair['n']} problems ({low:.0%}–{high:.0%})."]
    for row in others:
        difference = row["more_than_pair"]
        low, high = difference["interval"]
        verdict = "it does better" if low > 0 else "it does worse" if high < 0 else "no difference is shown"
        said.append(
            f"{_begun(row['label'])}: {row['exact_match']['value']:.0%}, {_points(difference)} points beside the pair "
            f"on the same {row['n']} problems; {verdict}."
        )
    for row in results["figures"]:
        rates = [float(rate) for rate in row.get("trials", {}) if row["rate"] is not None]
        if len(rates) > 1 and row["rate"] in (min(rates), max(rates)):
            said.append(
                f"{_begun(row['label'])}: the best rate tried, {row['rate']:g}, is at the edge of the grid; a better "
                "one may lie beyond."
            )
        if row["row"] == "pair-bidirectional":
            said.append(
                f"The published wiring reads what it must predict: {row['loss_nats']['value']:.3f} nats per token when "
                f"the answer stands before it, {row['exact_match']['value']:.0%} right where it has to write it."
            )
        if row.get("chosen"):
            said.append(f"{_begun(row['label'])}: of the prompt forms, “{row['chosen']}” did best.")
    said += [f"{_begun(label)} is left out: {why}." for label, why in results["left_out"].items()]
    return said


def fairness(results: Mapping[str, Any]) -> str:
    """How the budget was kept equal, in a sentence or two."""
    plan = results["plan"]
    rates = ", ".join(f"{rate:g}" for rate in plan["rates"])
    tuned = (
        f"before it each of the rates {rates} was tried for {TRIAL_SHARE:.0%} of the budget"
        if len(plan["rates"]) > 1
        else f"rate {rates}, not tuned"
    )
    return (
        f"Every trained row has {Budget.parse(plan['budget'])}, the source’s reading included; {tuned}. The same "
        f"{results['training_examples']:,} training examples are there for all, as many as a row has time for; "
        f"{plan['seeds']} training run{'s' * (plan['seeds'] > 1)} a row."
    )


def summary(results: Mapping[str, Any]) -> str:
    """Tables and sentences, as plain text."""
    said = bullets([fairness(results), *sentences(results)])
    return "\n\n".join([*(table.plain() for table in tables(results)), said])


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `compare.html`, which holds its pictures, and `compare.md`, which links to those in the folder.

    Returns:
        The page.
    """
    pictures = write_pictures(results, folder)
    contents = {
        "results": results,
        "tables": tables(results),
        "sentences": sentences(results),
        "fairness": fairness(results),
        "words": WORDS,
        "rows": {row["label"]: BY_NAME[row["row"]].meaning for row in results["figures"] if not row["given"]},
        "pictures": pictures,
    }
    images = embedded(folder, pictures)
    environment = templates({"gist": gist})
    page = folder / "compare.html"
    write_text(page, environment.get_template("compare.html.jinja").render(contents, images=images))
    write_text(folder / "compare.md", environment.get_template("compare.md.jinja").render(contents))
    return page


def _training(row: Mapping[str, Any]) -> Sequence[Cell]:
    return [
        Cell(f"{row['trainable']:,}"),
        *(Cell(f"{row[part]:.0f}" if row[part] else "") for part in ("training_s", "reading_s", "tuning_s")),
        Cell(f"{row['training_flops'] / 1e12:.3g}"),
        Cell(f"{row['updates']:,}"),
        Cell(str(row["batch_size"])),
        Cell(f"{row['rate']:g}"),
    ]


def _share(estimate: Mapping[str, Any]) -> Cell:
    low, high = (f"{bound * 100:.0f}" for bound in estimate["interval"])
    return Cell(f"{estimate['value']:.0%}", f"{low}–{high}")


def _points(estimate: Mapping[str, Any]) -> Cell:
    low, high = (f"{bound * 100:+.0f}" for bound in estimate["interval"])
    return Cell(f"{estimate['value'] * 100:+.0f}", f"{low} to {high}")


def _figure(estimate: Mapping[str, Any]) -> Cell:
    low, high = estimate["interval"]
    return Cell(f"{estimate['value']:.2f}", f"{low:.2f}–{high:.2f}")


def _begun(label: str) -> str:
    return label[0].upper() + label[1:]
