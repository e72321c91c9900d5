"""Pictures of a comparison: who is right how often, and at what cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from llm_modules.compare.rows import BY_NAME, PAIR
from llm_modules.plots import COLOURS, GREY, INK, interval_figure, save_figure

GAP = 0.045  # of the axis, between numbers that would stand upon each other


def write_pictures(results: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write the pictures; their names and what each shows."""
    figures = results["figures"]
    right = {row["label"]: (row["exact_match"]["value"], *row["exact_match"]["interval"]) for row in figures}
    loss = {
        row["label"]: (row["bits_per_byte"]["value"], *row["bits_per_byte"]["interval"])
        for row in figures
        if not row["given"]
    }
    drawn = {
        "accuracy.png": interval_figure(
            right, title="Right answers on held-out problems", meaning="exact match, with 95% intervals"
        ),
        "loss.png": interval_figure(
            loss, title="Loss of the right answers", meaning="bits per byte, with 95% intervals"
        ),
        "pareto.png": pareto_figure(results),
    }
    for name, figure in drawn.items():
        save_figure(figure, folder / name)
    return {
        "accuracy.png": "Dots with intervals: exact match of each row",
        "pareto.png": "Points: exact match against what training and what decoding cost; the steps join those that no "
        "other row beats on both",
        "loss.png": "Dots with intervals: loss of the right answers, word for word; a wiring that leaks has a low one "
        "because it copies",
    }


def pareto_figure(results: Mapping[str, Any]) -> Figure:
    """Quality against training cost and against decoding cost, a number for each row."""
    rows = [row for row in results["figures"] if not row["given"]]
    in_seconds = not results["plan"]["budget"].lower().endswith("flops")  # what is equal for all says nothing
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    quality = [row["exact_match"]["value"] for row in rows]
    training = [row["training_flops"] / 1e12 if in_seconds else row["training_s"] for row in rows]
    meaning = "10¹² FLOPs of training" if in_seconds else "seconds of training"
    _scatter(left, training, quality, rows)
    left.set_xlabel(f"{meaning} (the source alone: none)")
    left.set_ylabel("exact match")
    left.yaxis.set_major_formatter(PercentFormatter(1))
    _scatter(right, [1000 / row["tokens_per_s"] for row in rows], quality, rows)
    right.set_xlabel("seconds for 1,000 tokens, answering in batches")
    for number, row in enumerate(rows, start=1):
        right.plot([], [], " ", marker=f"${number}$", color=_colour(row), markersize=9, label=row["label"])
    right.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)
    figure.suptitle("Quality against cost: up and to the left is better", x=0.01, ha="left", color=INK, weight="bold")
    return figure


def frontier(costs: Sequence[float], quality: Sequence[float]) -> list[tuple[float, float]]:
    """The points that no other beats on both, from cheap to dear."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(zip(costs, quality, strict=True), key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def _scatter(axes: Axes, costs: Sequence[float], quality: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> None:
    paid = [cost for cost in costs if cost > 0]
    free = min(paid, default=1.0) / 4  # where a logarithmic axis puts nothing
    places = [cost if cost > 0 else free for cost in costs]
    axes.set_xscale("log")
    axes.set_ylim(-0.06, 1.06)
    steps = frontier(places, quality)
    axes.step(
        [*(cost for cost, _ in steps), max(places) * 1.6], [*(v for _, v in steps), steps[-1][1]],
        where="post", color=COLOURS["pair-zeroed"], lw=2, zorder=1,
    )  # fmt: skip
    taken: list[tuple[float, float]] = []
    for number, (place, value, row) in enumerate(zip(places, quality, rows, strict=True), start=1):
        axes.plot(place, value, "o", color=_colour(row), markersize=7, markeredgecolor="white", zorder=2)
        height = value
        while any(abs(height - other) < GAP and place / 1.35 < beside < place * 1.35 for beside, other in taken):
            height += GAP
        taken.append((place, height))
        axes.annotate(str(number), (place, height), (7, 0), textcoords="offset points", va="center", color=_colour(row))
    axes.grid(color="#d8dde2", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(row: Mapping[str, Any]) -> str:
    if row["row"] == PAIR:
        return COLOURS["pair"]
    if not BY_NAME[row["row"]].is_trained:
        return COLOURS["source-few-shot"]
    return COLOURS["generator"] if row["row"].startswith(("generator", "distilled")) else GREY
