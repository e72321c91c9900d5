"""Batches of similar lengths: every example once, little padding, and an order that seed and epoch alone decide."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_modules.data.batches import LengthGroupedBatches, Share, TokenBudgetBatches, in_batches, padding_share


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 3))
def test_length_grouping_serves_every_example_once(lengths, batch_size, epoch):
    batches = LengthGroupedBatches(lengths, batch_size=batch_size, seed=3)
    batches.set_epoch(epoch)
    assert sorted(batches) == list(range(len(lengths))) == sorted(range(len(batches)))


def test_length_grouping_is_decided_by_seed_and_epoch_alone():
    batches = LengthGroupedBatches(range(1, 200), batch_size=4, seed=3)
    first = list(batches)
    torch.rand(5)
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(1, 7), st.floats(0.05, 1.0))
def test_share_of_an_epoch_is_drawn_anew_without_repetition(lengths, batch_size, fraction):
    batches = LengthGroupedBatches(lengths, batch_size=batch_size, seed=3, fraction=fraction)
    order = list(batches)
    assert len(order) == len(batches) == len(set(order)) == max(1, round(len(lengths) * fraction))
    assert set(order) <= set(range(len(lengths)))


def test_each_epoch_draws_another_share():
    batches = LengthGroupedBatches([5] * 100, batch_size=4, seed=0, fraction=0.3)
    epochs = []
    for epoch in range(30):
        batches.set_epoch(epoch)
        epochs.append(frozenset(batches))
    assert len(set(epochs)) == 30
    assert len(frozenset.union(*epochs)) == 100


def test_length_grouping_leaves_little_padding():
    lengths = [10 + 7 * (i * 37 % 101) for i in range(1000)]
    grouped = in_batches(LengthGroupedBatches(lengths, batch_size=16, seed=0), batch_size=16)
    as_given = in_batches(range(len(lengths)), batch_size=16)
    assert padding_share(lengths, as_given) > 0.4
    assert padding_share(lengths, grouped) < 0.08


def test_padding_share_counts_padding():
    assert padding_share([1, 3], [[0, 1]]) == pytest.approx(2 / 6)
    assert padding_share([1, 3], [[1], [0]]) == 0
    assert padding_share([], []) == 0


# -- by a budget of tokens -------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=80)


def slots(lengths, batch):
    return len(batch) * max(lengths[index] for index in batch)


@given(LENGTHS, st.integers(1, 400), st.integers(0, 3))
def test_every_example_is_served_once_within_the_budget_unless_longer_than_it(lengths, budget, epoch):
    batches = TokenBudgetBatches(lengths, tokens_per_batch=budget, seed=3)
    batches.set_epoch(epoch)
    served = list(batches)
    assert sorted(index for batch in served for index in batch) == list(range(len(lengths)))
    for batch in served:
        assert slots(lengths, batch) <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 400), st.floats(0.05, 1.0))
def test_every_epoch_has_the_number_of_batches_known_before(lengths, budget, fraction):
    batches = TokenBudgetBatches(lengths, tokens_per_batch=budget, seed=3, fraction=fraction)
    for epoch in range(3):
        batches.set_epoch(epoch)
        served = [index for batch in batches for index in batch]
        assert len(list(batches)) == len(batches)
        assert len(set(served)) == len(served)


def test_budgeted_batches_are_decided_by_seed_and_epoch_alone_and_change_with_both():
    lengths = lognormal_lengths(300)
    batches = TokenBudgetBatches(lengths, tokens_per_batch=2048, seed=3)
    first = list(batches)
    torch.rand(5)
    assert list(batches) == first
    batches.set_epoch(1)
    again = {frozenset(batch) for batch in batches}
    assert len(again & set(map(frozenset, first))) < len(again) / 2  # other companions, not only another order
    assert list(TokenBudgetBatches(lengths, tokens_per_batch=2048, seed=4)) != first


def lognormal_lengths(number):
    """Lengths as of real conversations: most of some hundred tokens, a few of thousands."""
    draw = random.Random(0)
    return [max(8, round(draw.lognormvariate(5.5, 0.8))) for _ in range(number)]


@pytest.mark.parametrize("budget", [2048, 4096, 16384])
def test_budgeted_batches_of_real_lengths_hold_little_padding_and_are_full(budget):
    lengths = lognormal_lengths(2000)
    batches = list(TokenBudgetBatches(lengths, tokens_per_batch=budget, seed=0))
    assert padding_share(lengths, batches) < 0.1
    assert padding_share(lengths, in_batches(range(2000), batch_size=16)) > 0.4
    assert sum(lengths) / len(batches) > 0.75 * budget


def test_each_epoch_draws_another_share_of_the_batches():
    batches = TokenBudgetBatches([5] * 100, tokens_per_batch=20, seed=0, fraction=0.3)
    seen = set()
    for epoch in range(30):
        batches.set_epoch(epoch)
        served = {index for batch in batches for index in batch}
        assert len(served) == 32  # 8 of 25 batches
        seen |= served
    assert len(seen) == 100


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_processes_together_serve_the_batches_of_one(lengths, batch_size, num_processes, by_tokens):
    made = lambda: (  # noqa: E731
        TokenBudgetBatches(lengths, tokens_per_batch=60, seed=3)
        if by_tokens
        else LengthGroupedBatches(lengths, batch_size=batch_size, seed=3)
    )
    shares = [
        Share(made(), batch_size=batch_size, process=i, num_processes=num_processes) for i in range(num_processes)
    ]
    alone = made()
    for order in (alone, *shares):
        order.set_epoch(2)
    whole = in_batches(alone, batch_size=batch_size)
    served = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(parts) for parts in served] == [len(whole)] * num_processes
    for batch, *parts in zip(whole, *served, strict=True):
        assert sorted(batch) == sorted(index for part in parts for index in part)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
