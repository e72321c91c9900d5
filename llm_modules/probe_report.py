"""The report of a probe: one set of tables, printed, as a web page and as Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_modules.files import write_text
from llm_modules.pages import Cell, Table, bullets, embedded, share, templates
from llm_modules.plots import interval_figure, save_figure

WORDS = {
    "more than as trained": "how much higher the loss of the right answers is under the control, problem by problem; "
    "an interval that does not hold 0 shows that the pair lives by what was taken",
    "interval": "95 %: of losses, shares and gates by drawing the questions anew (bootstrap), of exact match Wilson’s",
    "gate": "how much of what a bridge layer passes on was read (the mean over its features): 0 nothing, 1 all",
    "share of attention": "of all attention while answers are written, mean over layers and heads, how much goes to "
    "tokens spelled so, wherever they stand",
}
"""What the tables mean by their words."""


def tables(results: Mapping[str, Any]) -> list[Table]:
    """All tables of the report."""
    judged = "exact_match" in results["controls"][0]
    header = ["", "loss, nats per token", "more than as trained", *["exact match"] * judged]
    rows = [
        [
            Cell(row["name"]),
            _figure(row["loss_nats"]),
            Cell("") if number == 0 else _figure(row["more_nats"], signed=True),
            *([share(row["exact_match"], decimals=0)] if judged else []),
        ]
        for number, row in enumerate(results["controls"])
    ]
    found = [Table(f"{results['n']} held-out questions of {results['asked']}, 95% intervals", header, rows)]
    gates = [[Cell(f"layer {layer}"), share(gate)] for layer, gate in enumerate(results["gates"], start=1)]
    found.append(Table("Gates: how far open while an answer is written", ["", "open"], gates))
    if len(results["taps"]) > 1:
        taps = [[Cell(f"layer {tap}"), Cell(f"{weight:.1%}")] for tap, weight in results["taps"].items()]
        found.append(Table("Taps: from which source layers the knowledge comes", ["", "weight"], taps))
    tokens = [[Cell(token["token"]), share(token["share"])] for token in results["tokens"]]
    found.append(Table("Tokens that are read most", ["", "share of attention"], tokens))
    return found


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What the figures say."""
    said = []
    for row in results["controls"][1:]:
        low, high = row["more_nats"]["interval"]
        verdict = (
            "the pair needs what is taken" if low > 0
            else "the pair does better without what is taken" if high < 0
            else "no difference is shown"
        )  # fmt: skip
        said.append(
            f"{row['name']} ({row['meaning']}): {row['more_nats']['value']:+z.3f} nats per token "
            f"({low:+z.3f} to {high:+z.3f}); {verdict}."
        )
    if "answers_to_other" in results:
        other = results["answers_to_other"]
        said.append(
            f"With another prompt’s states {share(other, decimals=0)} of the answers are right for that other prompt."
        )
    leak = results["leak"]
    gained, (low, high) = leak["gained_nats"]["value"], leak["gained_nats"]["interval"]
    said.append(
        f"Leak test: {'FAILED' if leak['leaks'] else 'passed'}. With the future before the model no logit may move; "
        f"the largest move at {leak['num_positions']} positions is {leak['largest_move']:.2g}, and the loss of the "
        f"next token falls by {gained:z.3f} nats ({low:z.3f} to {high:z.3f})."
    )
    return said


def summary(results: Mapping[str, Any]) -> str:
    """Tables and sentences, as plain text."""
    return "\n\n".join([*(table.plain() for table in tables(results)), bullets(sentences(results))])


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `probe.html`, which holds its pictures, and `probe.md`, which links to those in the folder.

    Args:
        results: What `probe` measured.
        folder: Where the pictures of one answer are and the reports go.

    Returns:
        The page.
    """
    rises = {row["name"]: (row["more_nats"]["value"], *row["more_nats"]["interval"]) for row in results["controls"][1:]}
    meaning = "nats per token more than as trained, with 95% intervals"
    save_figure(interval_figure(rises, title="What taking it away costs", meaning=meaning), folder / "controls.png")
    pictures = {
        "controls.png": "Dots with intervals: by how much the loss rises under each control",
        "gates.png": "Colours: how far each bridge layer’s gate is open for each token of one answer",
    }
    for layer in range(1, len(results["gates"]) + 1):
        pictures[f"attention-{layer}.png"] = f"Colours: what bridge layer {layer} reads for each token of that answer"
    contents = {
        "results": results,
        "tables": tables(results),
        "sentences": sentences(results),
        "words": WORDS,
        "pictures": pictures,
    }
    images = embedded(folder, pictures)
    environment = templates()
    page = folder / "probe.html"
    write_text(page, environment.get_template("probe.html.jinja").render(contents, images=images))
    write_text(folder / "probe.md", environment.get_template("probe.md.jinja").render(contents))
    return page


def _figure(estimate: Mapping[str, Any], *, signed: bool = False) -> Cell:
    sign, (low, high) = "+z" if signed else "", estimate["interval"]
    return Cell(f"{estimate['value']:{sign}.3f}", f"{low:{sign}.3f} to {high:{sign}.3f}")
