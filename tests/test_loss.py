"""The loss: that of `torch.nn.functional.cross_entropy`, its gradients too, without ever holding all logits."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from llm_modules import UserError, loss
from llm_modules.loss import LossVocabulary, cross_entropy
from llm_modules.readout import Readout, folding_pays
from tests.conftest import VOCAB, random_ids, tiny_pair

WIDTH = 16


def readout_of(number=40, seed=0, *, bias=False, cap=None):
    """States that need gradients and a random head that does too, and targets among few words."""
    draw = torch.Generator().manual_seed(seed)
    rows, matrix = torch.randn(number, WIDTH, generator=draw), torch.randn(VOCAB, WIDTH, generator=draw)
    added = torch.randn(VOCAB, generator=draw).requires_grad_() if bias else None
    targets = torch.randint(3, 20, (number,), generator=draw)
    return Readout(rows.requires_grad_(), matrix.requires_grad_(), added, cap), targets


def among(readout, words):
    """The same over some words."""
    bias = None if readout.bias is None else readout.bias[words]
    return replace(readout, matrix=readout.matrix[words], bias=bias)


def leaves(readout):
    return [leaf for leaf in (readout.rows, readout.matrix, readout.bias) if leaf is not None]


@given(
    number=st.integers(1, 40),
    rows_per_chunk=st.integers(1, 50),
    bias=st.booleans(),
    cap=st.sampled_from([None, 3.0]),
    sampled=st.booleans(),
    num_items=st.sampled_from([None, 7]),
)
def test_loss_and_gradients_are_those_of_the_plain_loss(number, rows_per_chunk, bias, cap, sampled, num_items):
    readout, targets = readout_of(number, bias=bias, cap=cap)
    vocabulary, asked, places, added = None, readout, targets, 0
    if sampled:
        draw = torch.Generator().manual_seed(3)
        vocabulary = LossVocabulary.sample(targets.unique(), num_random=12, vocab_size=VOCAB, generator=draw)
        asked, places = among(readout, vocabulary.words), vocabulary.positions(targets)
        added = vocabulary.log_weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "rows_per_chunk", lambda _: rows_per_chunk)
        ours = cross_entropy(asked, targets, vocabulary=vocabulary, num_items=num_items)
    plain = F.cross_entropy(asked.logits() + added, places, reduction="sum") / (num_items or number)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    found, expected = (torch.autograd.grad(value * 3, leaves(readout), retain_graph=True) for value in (ours, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_extreme_logits_neither_overflow_nor_vanish():
    readout, targets = readout_of(4)
    far = replace(readout, rows=readout.rows * 1e4)
    torch.testing.assert_close(cross_entropy(far, targets), F.cross_entropy(far.logits(), targets))


def test_frozen_matrix_gets_no_gradient_and_costs_none():
    readout, targets = readout_of()
    frozen = replace(readout, matrix=readout.matrix.detach())
    cross_entropy(frozen, targets).backward()
    assert frozen.matrix.grad is None
    assert readout.rows.grad.abs().sum() > 0


def test_gradient_of_the_head_is_the_one_buffer_that_was_filled():
    readout, targets = readout_of()
    value = cross_entropy(readout, targets)
    buffer = value.grad_fn.next_functions[0][0].gradients[1]
    place = buffer.data_ptr()
    del buffer
    value.backward()
    assert readout.matrix.grad.data_ptr() == place  # no second copy of a large head's gradient


def test_without_gradients_none_are_made():
    readout, targets = readout_of()
    with torch.no_grad():
        value = cross_entropy(readout, targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, F.cross_entropy(readout.logits(), targets).detach())


def test_handing_gradients_back_twice_is_refused():
    readout, targets = readout_of()
    value = cross_entropy(readout, targets)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed back before"):
        value.backward()


def test_autocast_computes_products_in_bfloat16_and_sums_in_float32():
    readout, targets = readout_of()
    with torch.autocast("cpu", torch.bfloat16):
        low = cross_entropy(readout, targets)
    low.backward()
    assert low.dtype == readout.matrix.grad.dtype == torch.float32
    found = [leaf.grad.clone() for leaf in leaves(readout)]
    full = cross_entropy(readout, targets)
    assert low.item() == pytest.approx(full.item(), rel=0.02)
    assert low.item() != full.item()
    for one, other in zip(found, torch.autograd.grad(full, leaves(readout)), strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


# -- over part of the vocabulary --------------------------------------------------------------------------------------


def test_loss_over_all_words_is_the_full_loss_exactly():
    readout, targets = readout_of()
    everything = LossVocabulary.sample(
        targets.unique(), num_random=VOCAB, vocab_size=VOCAB, generator=torch.Generator()
    )
    assert torch.equal(everything.words, torch.arange(VOCAB))
    assert not everything.log_weights.any()
    assert torch.equal(cross_entropy(readout, targets, vocabulary=everything), cross_entropy(readout, targets))


def test_sampled_partition_function_is_right_on_average():
    readout, targets = readout_of()
    full = readout.logits().exp().sum(-1)
    draw, estimates = torch.Generator().manual_seed(3), []
    for _ in range(2000):
        vocabulary = LossVocabulary.sample(targets.unique(), num_random=12, vocab_size=VOCAB, generator=draw)
        estimates.append((among(readout, vocabulary.words).logits() + vocabulary.log_weights).exp().sum(-1))
    assert (torch.stack(estimates).mean(0) / full - 1).abs().mean() < 0.02


def test_sampled_loss_is_near_the_full_one_on_average():
    readout, targets = readout_of()
    draw, losses = torch.Generator().manual_seed(3), []
    for _ in range(300):
        vocabulary = LossVocabulary.sample(targets.unique(), num_random=25, vocab_size=VOCAB, generator=draw)
        losses.append(cross_entropy(among(readout, vocabulary.words), targets, vocabulary=vocabulary))
    full = cross_entropy(readout, targets)
    assert torch.stack(losses).mean().item() == pytest.approx(full.item(), rel=0.05)  # log of an unbiased estimate


def test_label_outside_the_sampled_words_is_refused():
    readout, targets = readout_of()
    vocabulary = LossVocabulary(torch.tensor([3, 4]), torch.zeros(2))
    with pytest.raises(UserError, match="is not in the loss vocabulary"):
        cross_entropy(among(readout, vocabulary.words), targets, vocabulary=vocabulary)


# -- folding the projection into the words ----------------------------------------------------------------------------


def test_folding_pays_for_many_rows_only():
    assert not folding_pays(100, narrow=128, wide=576)
    assert folding_pays(1000, narrow=128, wide=576)
    assert not folding_pays(10**9, narrow=500, wide=576)  # the folded matrix's own gradient costs more than it saves


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_folded_head_gives_the_same_loss_and_gradients(visibility, monkeypatch):
    found = []
    for folds in (False, True):
        monkeypatch.setattr("llm_modules.modeling.folding_pays", lambda *_, folds=folds, **__: folds)
        model = tiny_pair(visibility=visibility, start="published").eval()
        ids = random_ids(3, 11)
        value = model(ids, labels=ids, prompt_mask=(torch.arange(11) < 4).expand(3, 11)).loss
        value.backward()
        found.append((value, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
