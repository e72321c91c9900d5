"""The demo's report: one set of tables and sentences, printed, as a web page and as Markdown."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from llm_modules.files import write_text
from llm_modules.pages import Cell, Table, bullets, embedded, templates
from llm_modules.plots import NAMES
from llm_modules.tasks import stratos
from llm_modules.verdicts import ACCURACY_BAR, FORM_BAR, SPEED_BAR, Results, beside, findings, percent, verdicts

__all__ = ["summary", "verdicts", "write_report"]

GIST_LENGTH = 100
"""Characters of an answer that are shown without asking for more."""

VISIBILITIES = {"source": "source alone", "prompt": "pair, prompt visibility", "causal": "pair, causal visibility"}

WORDS = {
    "source": "the large model, frozen: nothing in it was trained; it is asked in its own chat form",
    "source, few-shot": "the same model with a few solved examples before each question",
    "generator alone": "the small model without the source, trained on the same data for the same number of steps",
    "pair": "the small model reading the source's states through the bridge; only bridge and generator were trained",
    "held-out": "never met in training: other operand pairs, other countries and elements",
    "words never shown": 'the same kinds of problem put in other words: "increase 4 by 5", "what is the total of"',
    "exact match": "the share of questions whose final answer is right",
    "95% interval": "where the share would plausibly lie with endlessly many questions (Wilson); shown as (low–high)",
    "form": "the share of answers that have both sections, thought and solution, and nothing around them",
    "zeroed": "the pair with the source's states replaced by zeros: what it knows without the source",
    "chance": "what always giving the answer that is commonest in training would score",
    "visibility": "which states of the source an answer may read: those of the question only (prompt: the source runs "
    "once) or also those of the answer so far (causal: the source reads every word)",
}

PICTURES = {
    "arithmetic-accuracy.png": "Bars: exact match of the four models in each kind of arithmetic problem",
    "arithmetic-loss.png": "Curves: loss of pair and generator alone while training on arithmetic",
    "facts-accuracy.png": "Bars: exact match of the models in each relation of the facts",
    "facts-loss.png": "Curves: loss of pair and generator alone while training on facts",
}


def summary(results: Results) -> str:
    """Tables, the paper's questions and what was shown, as plain text of at most `WIDTH` columns."""
    questions = [
        f"{asked['question']} {gist(asked['answer'])} ({'right' if asked['correct'] else 'wrong'})"
        for asked in results["paper_questions"]
    ]
    found, printed = findings(results), tables(results)
    return "\n\n".join(
        [
            *(printed[name].plain() for name in ("arithmetic", "kinds", "reworded", "facts", "speed")),
            _paragraphs("The paper's two questions, answered by the pair", questions),
            _paragraphs("Shown", [finding.text for finding in found if finding.shown]),
            _paragraphs("Not shown", [finding.text for finding in found if not finding.shown]),
            f"Chat with the pair:\n  {results['chat_command']}",
        ]
    )


def write_report(results: Results, folder: Path) -> tuple[Path, Path]:
    """Write `report.html`, which holds its pictures, and `report.md`, which links to those in the folder.

    Args:
        results: What the demo measured.
        folder: Where the pictures are and the reports go.

    Returns:
        The paths of both.
    """
    environment = templates({"gist": gist})
    contents = {
        "results": results,
        "findings": findings(results),
        "tables": tables(results),
        "names": NAMES,
        "words": WORDS,
        "pictures": PICTURES,
    }
    images = embedded(folder, PICTURES)
    html, markdown = folder / "report.html", folder / "report.md"
    write_text(html, environment.get_template("report.html.jinja").render(contents, images=images))
    write_text(markdown, environment.get_template("report.md.jinja").render(contents))
    return html, markdown


def tables(results: Results) -> dict[str, Table]:
    """All tables of the report, by name."""
    return {
        "arithmetic": _arithmetic_table(results),
        "kinds": _kinds_table(results["models"], "Arithmetic: exact match per kind of problem"),
        "reworded": _reworded_table(results),
        "facts": _facts_table(results),
        "speed": _speed_table(results),
        "time": Table(
            "Where the time went",
            ["", "seconds"],
            [[Cell(stage["name"]), Cell(f"{stage['seconds']:.0f}")] for stage in results["stages"]],
        ),
    }


def gist(text: str) -> str:
    """The solution section, or all of a text without one, on one line and not longer than `GIST_LENGTH`."""
    line = "".join(filter(str.isprintable, " ".join((stratos.solution_of(text) or text).split())))
    short = line if len(line) <= GIST_LENGTH else line[: GIST_LENGTH - 1].rstrip() + "…"
    return short or "(nothing)"


def _arithmetic_table(results: Results) -> Table:
    rows = [
        [
            Cell(NAMES[model["model"]]),
            _accuracy(model["exact_match"], model["interval"], ACCURACY_BAR),
            Cell(f"{round(model['exact_match'] * model['n'])} of {model['n']}"),
            Cell(percent(model["form"], FORM_BAR)),
            Cell(f"{model['tokens_per_s']:,.0f}"),
            Cell(f"{model['trained_parameters']:,}"),
        ]
        for model in results["models"]
    ]
    header = ["", "exact match", "right", "form", "tokens/s, in batches", "trained parameters"]
    return Table("Arithmetic: held-out problems", header, rows)


def _reworded_table(results: Results) -> Table:
    models = results["reworded"]
    table = _kinds_table(models, "Arithmetic, asked in words that training never shows: exact match")
    whole = [
        Cell("all"),
        *(_accuracy(model["exact_match"], model["interval"]) for model in models),
        Cell(str(models[0]["n"])),
    ]
    return replace(table, rows=[*table.rows, whole])


def _kinds_table(models: Sequence[Results], title: str) -> Table:
    rows = [
        [Cell(kind), *(_accuracy(by["exact_match"], by["interval"]) for by in scores), Cell(str(scores[0]["n"]))]
        for kind in models[0]["by_kind"]
        for scores in [[model["by_kind"][kind] for model in models]]
    ]
    header = ["", *(NAMES[model["model"]] for model in models), "n"]
    return Table(title, header, rows)


def _asked(everyone: int, zeroed: int) -> str:
    """How many questions; in parentheses those of the zeroed pair, where it is asked fewer."""
    return str(everyone) if everyone == zeroed else f"{everyone} ({zeroed})"


def _facts_table(results: Results) -> Table:
    zeroed, chance = results["facts_controls"]["pair-zeroed"], results["facts_controls"]["chance"]
    scores = [*results["facts"], zeroed]
    rows = [
        [
            Cell(relation),
            *(_accuracy(score["exact_match"][relation], score["interval"][relation]) for score in scores),
            Cell(f"{chance[relation]:.1%}"),
            Cell(_asked(results["facts"][0]["n"][relation], zeroed["n"][relation])),
        ]
        for relation in zeroed["exact_match"]
    ]
    header = ["", *(NAMES[score["model"]] for score in results["facts"]), NAMES["pair-zeroed"], "chance", "n"]
    return Table("Facts: exact match on held-out countries and elements", header, rows)


def _speed_table(results: Results) -> Table:
    speed, ratio = results["speed"], {"source": 1.0, **results["speed_vs_source"]}
    rows = [
        [
            Cell(name),
            Cell(f"{speed[key]:.1f}"),
            Cell("{:.1f}–{:.1f}".format(*speed["spread"][key])),
            Cell(beside(ratio[key], SPEED_BAR, decimals=2)),
        ]
        for key, name in VISIBILITIES.items()
    ]
    title = (
        f"Speed: tokens per second, one question at a time, {speed['new_tokens']} new tokens, "
        f"median of {speed['repeats']} repeats"
    )
    return Table(title, ["", "tokens/s", "lowest–highest", "times the source"], rows)


def _accuracy(share: float, interval: Sequence[float], bar: Fraction | None = None) -> Cell:
    low, high = (f"{bound * 100:.0f}" for bound in interval)
    return Cell(percent(share, bar), f"{low}–{high}")


def _paragraphs(title: str, sentences: Sequence[str]) -> str:
    return f"{title}\n{bullets(sentences or ['nothing'])}"
