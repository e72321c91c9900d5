"""Pictures of training and comparison."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no screen needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from llm_modules.files import write_bytes

NAMES = {
    "source": "source",
    "source-few-shot": "source, few-shot",
    "generator": "generator alone",
    "pair": "pair",
    "pair-zeroed": "pair, zeroed",
}
"""What the models are called wherever a reader meets them."""

# Apart in lightness too, so that they stay apart without colour: Okabe and Ito's blue and orange among greys.
COLOURS = {
    "source": "#b9bfc5",
    "source-few-shot": "#747c84",
    "generator": "#e69f00",
    "pair": "#0072b2",
    "pair-zeroed": "#a9d0ea",
}
GREY, INK = "#596066", "#24292f"
FEW_TICKS = 1.5
"""Decades of loss below which a logarithmic axis also labels the ticks between its powers of ten."""


def loss_figure(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Training loss (line) and validation loss (dots) over steps, one colour a model.

    Args:
        histories: Name to `log_history` of a transformers Trainer.
    """
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, history in histories.items():
        colour = COLOURS.get(name, GREY)
        for key, style in (("loss", "-"), ("eval_loss", "o")):
            points = [(entry["step"], entry[key]) for entry in history if key in entry]
            if points:
                axes.plot(
                    *zip(*points, strict=True), style, color=colour, markersize=5, markeredgecolor="white", lw=1.5
                )
        axes.plot([], [], color=colour, lw=4, label=NAMES.get(name, name))
    axes.set(xlabel="training step", ylabel="loss (nats per token)", yscale="log")
    _label_decades(axes)
    _finish(
        axes, "Loss in training (lines) and in validation over the full vocabulary (dots)", num_labels=len(histories)
    )
    return figure


def accuracy_figure(scores: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """Grouped bars of exact match with 95 % intervals.

    Args:
        scores: Model to group (kind of problem) to `(value, low, high)`; every model has the same groups.
    """
    groups = list(next(iter(scores.values())))
    figure, axes = plt.subplots(figsize=(max(8.0, len(groups) + 0.5), 4), layout="constrained")
    width = 0.84 / len(scores)
    for index, (model, by_group) in enumerate(scores.items()):
        values = [by_group[group] for group in groups]
        places = [place + (index - (len(scores) - 1) / 2) * width for place in range(len(groups))]
        heights = [value for value, _, _ in values]
        errors = [[v - low for v, low, _ in values], [high - v for v, _, high in values]]
        axes.bar(places, heights, width * 0.9, color=COLOURS.get(model, GREY), label=NAMES.get(model, model))
        axes.errorbar(places, heights, errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(0, 1.02), xlim=(-0.55, len(groups) - 0.45))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _finish(axes, "Right answers on held-out questions, with 95% intervals", num_labels=len(scores))
    return figure


def heat_figure(
    values: Sequence[Sequence[float]], *, rows: Sequence[str], columns: Sequence[str], title: str, meaning: str,
    top: float | None = None, wrap: int | None = None,
) -> Figure:  # fmt: skip
    """A table of figures as colours, from 0 (white).

    Args:
        values: A row for each of `rows`, a figure for each of `columns`.
        rows: Names of the rows, drawn as they are.
        columns: Names of the columns.
        title: Above the picture.
        meaning: What the colours mean.
        top: The figure that has the darkest colour; the largest if left out.
        wrap: Columns after which the table goes on below, like lines of a text; all beside each other if left out.
    """
    wide = min(wrap or len(columns), len(columns))
    bands = [slice(start, start + wide) for start in range(0, len(columns), wide)]
    height = min(40.0, 1.1 + len(bands) * (0.8 + 0.2 * len(rows)))
    size = (max(6.0, min(40.0, 2.5 + 0.2 * wide)), height)
    figure, grid = plt.subplots(len(bands), figsize=size, layout="constrained", squeeze=False)
    top = max(map(max, values)) if top is None else top
    for axes, band in zip(grid[:, 0], bands, strict=True):
        drawn = [row[band] for row in values]
        image = axes.imshow(drawn, cmap="Blues", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        axes.set_xlim(-0.5, wide - 0.5)  # a last line that is shorter keeps the size of its cells
        # tokens are no formulas, whatever dollars they hold
        axes.set_xticks(range(len(columns[band])), columns[band], rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(rows)), rows, fontsize=7, parse_math=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    grid[0, 0].set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    figure.colorbar(image, ax=grid[:, 0], label=meaning, fraction=0.03, pad=0.01).outline.set_visible(False)
    return figure


def interval_figure(
    estimates: Mapping[str, tuple[float, float, float]], *, title: str, meaning: str, line: float = 0.0,
    dots: Mapping[str, Sequence[float]] | None = None,
) -> Figure:  # fmt: skip
    """A dot with its interval for each name, one below the other, and a line to compare them with.

    Args:
        estimates: Name to `(value, low, high)`.
        title: Above the picture.
        meaning: What the axis means.
        line: Where the line stands.
        dots: Name to the single figures that its value is the mean of; drawn small.
    """
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.32 * len(estimates)), layout="constrained")
    places = range(len(estimates))
    values = [value for value, _, _ in estimates.values()]
    errors = [[v - low for v, low, _ in estimates.values()], [high - v for v, _, high in estimates.values()]]
    axes.axvline(line, color=GREY, lw=1)
    axes.errorbar(values, list(places), xerr=errors, fmt="o", color=COLOURS["pair"], elinewidth=2, capsize=3)
    for place, name in enumerate(estimates):
        single = (dots or {}).get(name, ())
        axes.plot(single, [place + 0.25] * len(single), "o", color=COLOURS["source-few-shot"], markersize=3)
    axes.set_yticks(places, list(estimates), parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(meaning)
    axes.grid(axis="x", color="#d8dde2", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Draw, then write beside and rename."""
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands there instead
        figure.savefig(drawn, format=path.suffix[1:], dpi=150)
    plt.close(figure)
    write_bytes(path, drawn.getvalue())


def _label_decades(axes: Axes) -> None:
    """Write 0.1 rather than a power of ten, and, where the axis spans hardly a decade, also 0.2, 0.3 and 0.5."""
    low, high = axes.get_ylim()
    between = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(between if high / low < 10**FEW_TICKS else NullFormatter())


def _finish(axes: Axes, title: str, *, num_labels: int) -> None:
    """What all pictures share: title and legend above the axes, a faint grid behind, no box."""
    axes.set_title(title, loc="left", color=INK, pad=28, fontsize=12, fontweight="bold")
    axes.grid(axis="y", color="#d8dde2", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", which="both", length=0)
    axes.legend(
        frameon=False, ncols=num_labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2,
        handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip
