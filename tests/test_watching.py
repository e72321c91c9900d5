"""What is collected is what the bridge computed, and collecting changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_modules.data.templates import Example
from llm_modules.watching import tap_weights, watch, watching
from tests.conftest import D_GENERATOR, random_ids, randomise_, tiny_generator_config, tiny_pair

BATCH, LENGTH, PROMPT, HEADS = 2, 9, 5, 2


def prompts(length=LENGTH):
    return (torch.arange(length) < PROMPT).expand(BATCH, length)


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
@torch.no_grad()
def test_watching_changes_no_logit_and_leaves_nothing_behind(visibility):
    model, ids = randomise_(tiny_pair(visibility=visibility)), random_ids(BATCH, LENGTH)
    before, names = model(ids, prompt_mask=prompts()).logits, set(vars(model.bridge.layers[0]))
    with watching(model, num_last=4) as readings:
        assert torch.equal(model(ids, prompt_mask=prompts()).logits, before)
    assert len(readings) == 2
    model(ids, prompt_mask=prompts())
    assert len(readings) == 2
    assert set(vars(model.bridge.layers[0])) == names and not model.bridge.layers[0]._forward_hooks


@settings(max_examples=20)
@given(st.sampled_from(["prompt", "causal"]), st.integers(0, 3), st.integers(1, LENGTH), st.integers(0, 99))
@torch.no_grad()
def test_rows_sum_to_one_are_zero_where_nothing_is_visible_and_gates_lie_between(visibility, padding, num_last, seed):
    model, ids = randomise_(tiny_pair(visibility=visibility, seed=seed)), random_ids(BATCH, LENGTH, seed=seed)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, :padding] = 0
    with watching(model, num_last=num_last) as readings:
        model(ids, attention_mask=mask, prompt_mask=prompts())
    columns = torch.arange(LENGTH)
    readable = mask.bool() & prompts() if visibility == "prompt" else mask.bool()
    visible = (readable[:, None, :] & (columns <= columns[:, None]))[:, -num_last:]
    for reading in readings:
        assert reading.gates.shape == (BATCH, num_last, D_GENERATOR)
        assert (reading.gates >= 0).all() and (reading.gates <= 1).all()  # in fp32 a far open one is 1
        allowed = visible[..., : reading.attention.shape[-1]]
        assert not visible[..., reading.attention.shape[-1] :].any()
        assert reading.attention.shape[:3] == (BATCH, HEADS, num_last)
        assert not (reading.attention * ~allowed[:, None]).any()
        sums = reading.attention.sum(-1)
        assert torch.allclose(sums, allowed.any(-1)[:, None].float().expand_as(sums), atol=1e-5)


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
@torch.no_grad()
def test_decoding_with_a_cache_reads_the_same(visibility):
    model, ids = randomise_(tiny_pair(visibility=visibility)), random_ids(BATCH, LENGTH)
    with watching(model, num_last=LENGTH) as whole:
        model(ids, prompt_mask=prompts())
    begun = model(ids[:, :PROMPT], prompt_mask=prompts(PROMPT), use_cache=True)
    with watching(model, num_last=1) as stepped:
        model(ids[:, PROMPT : PROMPT + 1], past_key_values=begun.past_key_values, use_cache=True)
    for full, step in zip(whole, stepped, strict=True):
        torch.testing.assert_close(step.gates, full.gates[:, PROMPT : PROMPT + 1], atol=1e-5, rtol=1e-4)
        width = step.attention.shape[-1]
        expected = full.attention[:, :, PROMPT : PROMPT + 1, :width]
        torch.testing.assert_close(step.attention, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("visibility", "num_read"), [("prompt", 4), ("causal", 6)])
def test_watched_answer_has_a_row_for_each_token_written(visibility, num_read):
    model = randomise_(tiny_pair(visibility=visibility))
    found = watch(model, Example([3, 4, 5, 6], [7, 8, 2]))
    assert found.gates.shape == (2, 3) and found.attention.shape == (2, 3, num_read)
    assert torch.allclose(found.attention.sum(-1), torch.ones(()), atol=1e-5)
    assert not found.attention[:, 0, 4:].any()  # the first token is written before anything of the answer can be read


def test_watched_answer_does_not_depend_on_where_its_knowledge_comes_from():
    model, example = randomise_(tiny_pair()), Example([3, 4, 5, 6], [7, 8, 2])
    states = model.read(torch.tensor([example.prompt_ids])).states[0]
    read, given_states = watch(model, example), watch(model, Example(example.prompt_ids, example.response_ids, states))
    assert torch.equal(read.attention, given_states.attention) and torch.equal(read.gates, given_states.gates)


def test_prompt_longer_than_the_generator_is_watched_whole():
    model = randomise_(tiny_pair(generator=tiny_generator_config(max_position_embeddings=8)))
    found = watch(model, Example(random_ids(1, 20)[0].tolist(), [7, 8, 2]))
    assert found.attention.shape == (2, 3, 20) and (found.attention > 0).all()
    assert torch.allclose(found.attention.sum(-1), torch.ones(()), atol=1e-5)


def test_taps_sum_to_one_and_a_single_one_has_it_all():
    assert tap_weights(tiny_pair()) == [1.0]
    weights = tap_weights(randomise_(tiny_pair(taps=[0, 1, -1])))
    assert len(weights) == 3 and sum(weights) == pytest.approx(1) and len(set(weights)) == 3
