"""Tokens are drawn as transformers would, each answer by its own random numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llm_modules.chat import Sampling
from llm_modules.serving.drawing import Drawing, likelihoods

LOGITS = torch.randn(31, generator=torch.Generator().manual_seed(1)) * 2


def drawn(count=1, logits=LOGITS, index=0, **sampling):
    drawing = Drawing(Sampling(**({"temperature": 1.0, "top_k": 0, "top_p": 1.0} | sampling)), index=index)
    return [drawing.draw(logits) for _ in range(count)]


@pytest.mark.parametrize(
    "choices",
    [{}, {"temperature": 0.3}, {"top_k": 4}, {"top_p": 0.6}, {"temperature": 1.7, "top_k": 9, "top_p": 0.8}],
    ids=str,
)
def test_shares_of_tokens_are_those_of_transformers(choices):
    scores = LOGITS[None]
    warpers = (("temperature", TemperatureLogitsWarper), ("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper))
    for name, warper in warpers:
        if name in choices:
            scores = warper(choices[name])(None, scores)
    expected = scores[0].softmax(-1)
    found = torch.bincount(torch.tensor(drawn(4_000, **choices)), minlength=31) / 4_000
    assert not found[expected == 0].any()
    torch.testing.assert_close(found, expected, atol=0.04, rtol=0)


@given(st.floats(0, 2), st.integers(0, 40), st.floats(0.01, 1), st.integers(-(2**63), 2**63 - 1))
def test_any_setting_draws_a_token(temperature, top_k, top_p, seed):
    (token,) = drawn(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    assert 0 <= token < 31
    if top_k == 1 or temperature == 0:
        assert token == int(LOGITS.argmax())


def test_seed_decides_and_answers_to_one_prompt_draw_apart():
    assert drawn(20, seed=3) == drawn(20, seed=3)
    assert len({tuple(drawn(20, seed=3, index=index)) for index in range(4)}) == 4


def test_draw_hardly_moves_with_the_last_bits_of_the_logits():
    noise = torch.randn(31, generator=torch.Generator().manual_seed(2)) * 1e-6
    assert drawn(2000, seed=5, top_k=20) == drawn(2000, seed=5, top_k=20, logits=LOGITS + noise)


def test_likelihoods_are_the_models_own_whatever_the_temperature():
    one, others = likelihoods(LOGITS, 7, 3)
    expected = LOGITS.log_softmax(-1)
    assert one.token == 7 and one.logprob == pytest.approx(float(expected[7]))
    assert [other.token for other in others] == LOGITS.argsort(descending=True)[:3].tolist()
    assert [other.logprob for other in others] == pytest.approx(expected.sort(descending=True).values[:3].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=40))
def test_without_temperature_the_first_of_the_likeliest_words_is_taken(dtype, values):
    logits = torch.tensor(values, dtype=dtype)
    assert drawn(logits=logits, temperature=0.0) == [values.index(max(values))]
