"""Figures and bars: written side by side, nobody's lost; competitors take turns in processes of their own."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.bars import Bar, Figure, bars_table, record
from benchmarks.results import BEGIN, END, parser, with_block
from benchmarks.rounds import Competitor, take_turns
from llm_modules.data.templates import Example
from tests.conftest import tiny_source_config


def test_bars_are_lower_or_upper_limits_and_hold_at_the_limit():
    assert [Bar(2.5).holds(value) for value in (2.4, 2.5, 2.6)] == [False, True, True]
    assert [Bar(0.34, at_most=True).holds(value) for value in (0.33, 0.34, 0.35)] == [True, True, False]


def test_ratio_is_of_medians_and_its_spread_of_neighbours_in_time():
    figure = Figure.ratio([8.0, 2.0, 4.0], [4.0, 2.0, 1.0], Bar(2.0))
    assert (figure.value, figure.spread) == (2.0, (1.0, 4.0))
    assert figure.holds
    assert "| `name` | 2.00   | 1.00–4.00 | at least 2 | yes   |" in bars_table({"name": figure})


def test_figures_of_several_benchmarks_stand_together_and_sorted(tmp_path, capsys):
    given = parser("name", None).parse_args(["--output", str(tmp_path)])
    record({"b": Figure(1.0, Bar(2.0), (0.5, 1.5))}, given)
    record({"a": Figure(0.123456, Bar(0.34, at_most=True), (0.1, 0.2))}, given)
    record({"b": Figure(3.0, Bar(2.0), (2.5, 3.5))}, given)
    text = (tmp_path / "benchmarks" / "results.json").read_text()
    assert list(json.loads(text).items()) == [
        ("a", {"value": 0.1235, "bar": 0.34, "holds": True, "spread": [0.1, 0.2]}),
        ("b", {"value": 3.0, "bar": 2.0, "holds": True, "spread": [2.5, 3.5]}),
    ]


def test_blocks_of_a_page_are_replaced_by_name():
    page = with_block("# Title\n", "one", block="first")
    page = with_block(page, "two", block="second")
    page = with_block(page, "three", block="first")
    assert page.startswith("# Title\n") and "one" not in page
    assert page.index("three") < page.index("two")
    assert BEGIN not in page and END not in page  # a page without names stays apart
    assert with_block(page, "two", block="second") == page


def counting(start):
    """A competitor that counts; built in its own process."""
    print("what libraries print does not disturb the answers")
    return {"step": lambda index: start + index, "fail": lambda: 1 / 0}


def test_competitors_take_turns_and_warm_up_turns_do_not_count():
    with Competitor("five", "tests.test_bars:counting", {"start": 5}) as five:
        take_turns([five], warm_up=1, repeats=2, label="counting")
        assert [turn.value for turn in five.turns["step"]] == [6, 7]
        assert 0 <= five.median() < 5 and min(five.peaks_gb()) > 0.01
        assert five.base_gb > 0.01


def test_failure_of_a_competitor_is_told_with_its_name():
    failing = Competitor("five", "tests.test_bars:counting", {"start": 5})
    with failing, pytest.raises(RuntimeError, match="(?s)five: .*ZeroDivisionError"):
        failing.turn("fail")
    missing = Competitor("six", "no_such_module:x", {})
    with pytest.raises(RuntimeError, match="(?s)six: .*no_such_module"), missing:
        pass


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
@pytest.mark.parametrize("method", ["lora", "lora_attention", "shadow", "full"])
def test_rivals_train_what_they_should_on_the_loss_that_transformers_computes(method):
    pytest.importorskip("peft")
    from benchmarks import rivals

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_source_config(tie_word_embeddings=True))
    batch = [Example([5, 6, 7], [8, 9, 10, 11]), Example([12], [13, 14])]
    inputs = rivals.collated(batch)
    with torch.no_grad():
        expected = model.train()(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=inputs["labels"]
        ).loss.item()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    actions = rivals.actions_of(method, model, [batch])
    losses = [actions["step"](0), actions["lean_step"](0)]
    if method == "shadow":  # starts as the source, and adds 0.05 times its auxiliary loss
        assert expected < losses[0] < 1.5 * expected
    else:
        assert losses[0] == pytest.approx(expected, abs=1e-5)
    assert losses[1] < losses[0] or method == "shadow"  # its dropout is random
    after = {name.replace(".base_layer", "").replace(".base_block", ""): p for name, p in model.named_parameters()}
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert bool(moved) == (method == "full")
    assert actions["num_trained"]() < sum(p.numel() for p in model.parameters()) or method == "full"
