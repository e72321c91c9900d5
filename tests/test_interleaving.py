"""Layers inside the generator read what those in front read, in any decoder, and leave nothing behind."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import GPT2Config, Qwen2Config

from llm_modules.blocks import blocks_of
from llm_modules.controls import closed_gates
from llm_modules.data.templates import Example
from llm_modules.watching import watch
from tests.conftest import D_GENERATOR, random_ids, randomise_, tiny_generator_config, tiny_pair, tiny_source_config

SMALL = {"vocab_size": 5, "bos_token_id": 1, "eos_token_id": 2}
GENERATORS = {
    "gpt_neo": tiny_generator_config(num_layers=4, attention_types=[[["global", "local"], 2]]),
    "llama": tiny_source_config(hidden_size=D_GENERATOR, num_attention_heads=4, num_hidden_layers=4, vocab_size=5),
    "gpt2": GPT2Config(n_embd=D_GENERATOR, n_head=2, n_layer=4, n_positions=96, **SMALL),
    "qwen2": Qwen2Config(
        hidden_size=D_GENERATOR,
        intermediate_size=20,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        **SMALL,
    ),
}


def interleaved(kind="gpt_neo", **choices):
    fields = {"placement": "interleaved", "num_bridge_layers": 0}
    return randomise_(tiny_pair(generator=copy.deepcopy(GENERATORS[kind]), **(fields | choices)))


def entered(model, ids):
    """States that enter each layer of cross-attention and each block, in their order."""
    seen = []
    parts = {f"layer {i}": layer for i, layer in enumerate(model.bridge.layers)}
    parts |= {f"block {i}": block for i, block in enumerate(blocks_of(model.generator))}
    hooks = [
        part.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0])))
        for name, part in parts.items()
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize(
    ("every", "order"),
    [
        (1, "layer 0, block 0, layer 1, block 1, layer 2, block 2, layer 3, block 3"),
        (2, "block 0, layer 0, block 1, block 2, layer 1, block 3"),
        (3, "block 0, block 1, layer 0, block 2, block 3"),
        (4, "block 0, block 1, block 2, layer 0, block 3"),
    ],
)
@torch.no_grad()
def test_every_kth_block_of_any_decoder_reads_before_it_runs(kind, every, order):
    model = interleaved(kind, interleave_every=every)
    assert ", ".join(name for name, _ in entered(model, random_ids(2, 7))) == order


@torch.no_grad()
def test_layers_in_front_come_first():
    model = interleaved("llama", interleave_every=3, num_bridge_layers=1)
    names = [name for name, _ in entered(model, random_ids(2, 7))]
    assert names == ["layer 0", "block 0", "block 1", "layer 1", "block 2", "block 3"]


@pytest.mark.parametrize("kind", GENERATORS)
@torch.no_grad()
def test_shut_gates_leave_the_generator_as_it_is(kind):
    model, ids = interleaved(kind), random_ids(2, 7)
    bare = tiny_pair(generator=copy.deepcopy(GENERATORS[kind]), num_bridge_layers=0)
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("bridge.layers.")}
    bare.load_state_dict(weights)
    expected = bare(ids).logits
    assert not torch.allclose(model(ids).logits, expected, atol=1e-3)
    with closed_gates(model, range(4)):
        assert torch.equal(model(ids).logits, expected)


@torch.no_grad()
def test_nothing_is_stored_on_blocks_between_calls():
    model = interleaved()
    before = [set(vars(part)) for part in model.modules()]
    model(random_ids(2, 7))
    assert [set(vars(part)) for part in model.modules()] == before


@torch.no_grad()
def test_a_pair_in_front_has_no_hooks():
    assert not any(block._forward_pre_hooks for block in blocks_of(tiny_pair().generator))


@torch.no_grad()
def test_a_deep_copy_reads_by_its_own_layers():
    model, ids = interleaved(), random_ids(2, 7)
    twin = copy.deepcopy(model)
    expected = model(ids).logits
    assert torch.equal(twin(ids).logits, expected)
    randomise_(model)
    assert torch.equal(twin(ids).logits, expected)


def test_two_threads_each_read_their_own_knowledge():
    model = interleaved("llama")

    @torch.no_grad()
    def answer(seed):
        return model(random_ids(1, 9, seed=seed)).logits

    alone = [answer(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(answer, range(8)), alone, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generating_with_a_cache_writes_what_it_writes_without(visibility, kind, how):
    model, ids = interleaved(kind, visibility=visibility), random_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    fields = {"attention_mask": mask, "max_new_tokens": 7, "do_sample": False, "eos_token_id": None, **how}
    assert torch.equal(model.generate(ids, **fields), model.generate(ids, use_cache=False, **fields))


@torch.no_grad()
def test_prompt_longer_than_the_generator_is_read_whole_inside_it():
    model = interleaved(generator_window=4, num_bridge_layers=0, taps=[0])
    ids = random_ids(1, 40)
    found = watch(model, Example(ids[0].tolist(), [7, 8, 2]))
    assert found.attention.shape == (4, 3, 40) and (found.attention > 0).all()
    assert torch.allclose(found.attention.sum(-1), torch.ones(()), atol=1e-5)
    changed = ids.clone()
    changed[0, 3] = 3 + (ids[0, 3] - 2) % 60
    assert not torch.allclose(model(changed, logits_to_keep=1).logits, model(ids, logits_to_keep=1).logits)
    written = {"max_new_tokens": 5, "eos_token_id": None, "do_sample": False}
    assert torch.equal(model.generate(ids, **written), model.generate(ids, use_cache=False, **written))
