"""How a benchmark is called, and where its figures go: screen, page and picture in `docs/`, JSON beside the script."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from matplotlib.figure import Figure

from llm_modules.files import write_text
from llm_modules.machine import machine
from llm_modules.plots import GREY, INK, save_figure

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
QUICK = Path("runs/quick")  # so that a quick run never replaces the figures that the docs cite
BEGIN, END = "<!-- measured: rewritten by the command below -->", "<!-- end of what was measured -->"

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "grid.color": "#d8dde2",
    "legend.frameon": False,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}
"""For `matplotlib.rc_context`: the look of the pictures in `llm_modules.plots`."""


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--quick", action="store_true", help=f"a small run, into {QUICK}")
    made.add_argument("--output", type=Path, help="folder for the figures (default: this project's own)")
    return made


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned so that it also reads well on a screen."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [head, *rows]]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folder_of(given: argparse.Namespace) -> Path:
    """Where the figures of a run go: a quick one never replaces those that the docs cite."""
    return given.output or (QUICK if given.quick else ROOT)


def publish(
    name: str, given: argparse.Namespace, *, command: str, measured: str, results: Mapping[str, Any], started: float,
    figure: Figure | None = None, block: str | None = None,
) -> None:  # fmt: skip
    """Print the measured table, put it into `docs/NAME.md`, and write `docs/NAME.png` and `benchmarks/NAME.json`.

    In a page that is there already, only what stands between the two markers is replaced. A page of several measured
    parts names them: the markers then carry the name of the `block`, and so does the JSON file, in place of the page's.
    `started` is a time of `time.perf_counter`.
    """
    folder = folder_of(given)
    minutes = (time.perf_counter() - started) / 60
    command += " --quick" * given.quick
    measured_on = {
        "cpu": machine()["cpu"],
        "accelerator": machine()["accelerator"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    caption = (
        f"`{command}`, seed {results['seed']}, {minutes:.1f} minutes on {measured_on['cpu']}, {measured_on['threads']} "
        f"threads, {measured_on['accelerator'] or 'no GPU'}; torch {measured_on['torch']}, "
        f"{results.get('dtype', 'fp32')}."
    )
    text = f"{measured}\n\n{caption}"
    print(f"\n{text}\n")
    page = folder / "docs" / f"{name}.md"
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    write_text(page, with_block(before, text, block=block))
    written = [f"page: {page}"]
    if figure is not None:
        picture = page.with_suffix(".png")
        save_figure(figure, picture)
        written.append(f"picture: {picture}")
    figures = folder / "benchmarks" / f"{(block or name).replace('-', '_')}.json"
    whole = {"command": command, "minutes": round(minutes, 1), "machine": measured_on, **results}
    write_text(figures, json.dumps(whole, indent=1) + "\n")
    print("\n".join([*written, f"figures: {figures}"]))


def with_block(page: str, text: str, *, block: str | None = None) -> str:
    """A page with its measured part, or the one called `block`, replaced; put at the end where it is not there yet."""
    begin, end = (BEGIN, END) if block is None else (marked(BEGIN, block), marked(END, block))
    before, found, rest = page.partition(begin)
    if not found and before and not before.endswith("\n\n"):
        before += "\n"
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2] or chr(10)}"


def marked(marker: str, block: str) -> str:
    """A marker that carries the name of one block."""
    return marker.replace("<!-- ", f"<!-- {block}: ")
