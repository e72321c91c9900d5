"""What the bridge is made of: its gates at the start, the pre-projection, and no cross-attention at all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_modules import UserError
from llm_modules.data.templates import Example
from llm_modules.watching import watch
from tests.conftest import random_ids, tiny_generator_config, tiny_pair

ANSWER = Example(random_ids(1, 9)[0].tolist(), [7, 8, 9, 2])
WIDE = tiny_generator_config(hidden_size=64)  # so that a mean over features says something


@pytest.mark.parametrize("placement", ["front", "interleaved"])
@settings(max_examples=10)
@given(share=st.floats(0.01, 0.99), start=st.sampled_from(["identity", "published"]))
def test_gates_start_about_as_far_open_as_asked(placement, share, start):
    choices = {"placement": placement, "start": start, "visibility": "causal", "generator": WIDE}
    found = watch(tiny_pair(gate_start=share, **choices), ANSWER).gates.mean().item()
    assert found == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize(("start", "share"), [("identity", 0.02), ("published", 0.5)])
def test_gates_start_as_the_start_implies_where_nothing_is_asked(start, share):
    found = watch(tiny_pair(start=start, visibility="causal", generator=WIDE), ANSWER).gates.mean().item()
    assert found == pytest.approx(share, rel=0.3)


def test_gate_start_changes_no_other_weight():
    shut, opened = tiny_pair(start="identity").state_dict(), tiny_pair(start="identity", gate_start=0.5).state_dict()
    assert {name for name in shut if not torch.equal(shut[name], opened[name])} == {
        "bridge.layers.0.gate.bias",
        "bridge.layers.1.gate.bias",
    }


@pytest.mark.parametrize("taps", [[-1], [0, -1]])
@torch.no_grad()
def test_without_pre_projection_the_layers_read_the_mixed_states_themselves(taps):
    model = tiny_pair(pre_projection=False, taps=taps)
    assert not any("pre_projection" in name for name in model.state_dict())
    seen = []
    hook = model.bridge.layers[0].register_forward_hook(lambda _, __, kw, ___: seen.append(kw), with_kwargs=True)
    ids = random_ids(2, 7)
    model(ids)
    hook.remove()
    assert torch.equal(seen[0]["knowledge"], model.bridge._mix(model.read(ids).states))


def test_without_cross_attention_a_prompt_beyond_the_positions_is_refused_not_cut():
    small = tiny_generator_config(max_position_embeddings=16)
    model = tiny_pair(num_bridge_layers=0, generator=small)
    assert model(random_ids(1, 16)).logits.shape[1] == 16
    message = "20 tokens are more than the generator's 16 positions; shorten the input, add a cross-attention layer"
    with pytest.raises(UserError, match=message):
        model(random_ids(1, 20))
    with pytest.raises(UserError, match=message):
        model.check_room(18, 2)
    inside = tiny_pair(num_bridge_layers=0, placement="interleaved", generator=small)
    assert inside.generate(random_ids(1, 20), max_new_tokens=3, eos_token_id=None).shape == (1, 23)


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_without_cross_attention_decoding_needs_no_keys_of_the_bridge(visibility, how):
    model, ids = tiny_pair(num_bridge_layers=0, visibility=visibility), random_ids(2, 6)
    fields = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, **how}
    assert torch.equal(model.generate(ids, **fields), model.generate(ids, use_cache=False, **fields))
