"""Intervals hold what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_modules import bootstrap as module
from llm_modules.bootstrap import Estimate, bootstrap


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 9)), min_size=1, max_size=40))
def test_interval_lies_within_the_extremes_and_the_value_is_the_ratio(problems):
    totals, sizes = zip(*problems, strict=True)
    found = bootstrap(totals, sizes)
    ratios = [total / size for total, size in problems]
    assert min(ratios) - 1e-9 <= found.low <= found.high <= max(ratios) + 1e-9
    assert found.value == pytest.approx(sum(totals) / sum(sizes))
    assert bootstrap(totals, sizes) == found


def test_interval_of_a_mean_is_the_normal_one_for_many_problems():
    numbers = np.random.default_rng(3).normal(2.0, 1.5, size=400)
    found = bootstrap(numbers.tolist())
    error = numbers.std() / 20
    assert found.low == pytest.approx(numbers.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(numbers.mean() + 1.96 * error, abs=0.15 * error)


def test_problems_that_are_hard_for_both_do_not_widen_a_paired_interval():
    hard = np.random.default_rng(4).normal(0, 10, size=50)
    one, other = hard + 1.0, hard + 1.5
    paired = bootstrap((other - one).tolist())
    assert (paired.low, paired.high) == pytest.approx((0.5, 0.5))
    assert bootstrap(one.tolist()).high - bootstrap(one.tolist()).low > 3


def test_draws_in_parts_count_as_many(monkeypatch):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", 70)
    found = bootstrap(range(10))
    assert found.value == 4.5 and found.low < 3.5 and found.high > 5.5


def test_estimate_reads_as_a_sentence_would_give_it():
    assert str(Estimate(1.0, -0.25, 2.0)) == "1.000 (-0.250 to 2.000)"
    assert Estimate(1.0, 0.5, 2.0).as_dict() == {"value": 1.0, "interval": [0.5, 2.0]}
