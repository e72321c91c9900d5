"""Pictures show what they were given."""

import pytest
from matplotlib import pyplot as plt

from llm_modules.plots import accuracy_figure, heat_figure, interval_figure, loss_figure, save_figure

HISTORY = [
    {"step": 10, "loss": 3.0, "learning_rate": 1e-3},
    {"step": 10, "eval_loss": 2.9},
    {"step": 20, "loss": 2.0},
    {"step": 20, "train_runtime": 7.0},
]


def lines(figure):
    """What is drawn, the empty lines of the legend left out."""
    drawn = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    return [points for points in drawn if points]


def test_losses_are_drawn_over_steps():
    figure = loss_figure({"pair": HISTORY, "generator": HISTORY[2:]})
    assert lines(figure) == [[[10, 3.0], [20, 2.0]], [[10, 2.9]], [[20, 2.0]]]
    assert figure.axes[0].get_xlabel() == "training step" and "nats" in figure.axes[0].get_ylabel()
    plt.close(figure)


def test_history_without_losses_draws_nothing():
    figure = loss_figure({"pair": []})
    assert lines(figure) == []
    plt.close(figure)


def test_bars_carry_their_intervals():
    scores = {
        "pair": {"all": (0.9, 0.85, 0.94), "sum": (1.0, 0.8, 1.0)},
        "source": {"all": (0.1, 0.06, 0.15), "sum": (0, 0, 0.2)},
    }
    figure = accuracy_figure(scores)
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.9, 1.0, 0.1, 0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["all", "sum"]
    ends = [segment[:, 1].tolist() for collection in axes.collections for segment in collection.get_segments()]
    expected = [[0.85, 0.94], [0.8, 1.0], [0.06, 0.15], [0, 0.2]]
    assert [pytest.approx(end) for end in expected] == ends
    plt.close(figure)


@pytest.mark.parametrize(("name", "start"), [("loss.png", b"\x89PNG"), ("loss.svg", b"<?xml")])
def test_figure_is_saved_whole_and_closed(tmp_path, name, start):
    before = plt.get_fignums()
    save_figure(loss_figure({"pair": HISTORY}), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert plt.get_fignums() == before


def test_heat_map_shows_its_figures_and_draws_tokens_as_they_are(tmp_path):
    figure = heat_figure(
        [[0.0, 0.5, 1.0], [0.25, 0.0, 0.75]],
        rows=["$a$", "b"],
        columns=["x", "文", "$\\frac"],
        title="t",
        meaning="m",
    )
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0.0, 0.5, 1.0], [0.25, 0.0, 0.75]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "文", "$\\frac"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$a$", "b"]
    save_figure(figure, tmp_path / "heat.png")  # which would fail if a token were read as a formula


def test_heat_map_goes_on_below_where_it_is_wrapped_with_cells_of_one_size():
    figure = heat_figure([[0.0, 0.5, 1.0]], rows=["a"], columns=["x", "y", "z"], title="t", meaning="m", wrap=2)
    first, second, _ = figure.axes
    assert first.images[0].get_array().tolist() == [[0.0, 0.5]] and second.images[0].get_array().tolist() == [[1.0]]
    assert first.get_xlim() == second.get_xlim() and first.images[0].norm.vmax == second.images[0].norm.vmax == 1.0
    assert [label.get_text() for label in second.get_xticklabels()] == ["z"]
    plt.close(figure)


def test_intervals_are_drawn_from_top_to_bottom():
    figure = interval_figure({"zeros": (1.0, 0.5, 2.0), "noise": (0.0, -1.0, 1.0)}, title="t", meaning="m")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["zeros", "noise"] and axes.yaxis_inverted()
    (bars,) = axes.collections
    assert [segment[:, 0].tolist() for segment in bars.get_segments()] == [[0.5, 2.0], [-1.0, 1.0]]
    plt.close(figure)


def test_single_figures_are_drawn_below_their_mean_and_the_line_where_it_is_wanted():
    estimates = {"base": (0.5, 0.4, 0.6), "deep": (0.7, 0.6, 0.8)}
    figure = interval_figure(estimates, title="t", meaning="m", line=0.5, dots={"deep": [0.65, 0.75]})
    line, *drawn = lines(figure)
    assert line == [[0.5, 0], [0.5, 1]] and [[0.65, 1.25], [0.75, 1.25]] in drawn
    plt.close(figure)
