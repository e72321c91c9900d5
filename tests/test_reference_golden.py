"""Parity with the published code: its checkpoint, its bridge states, its logits and its greedy continuation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTNeoConfig, Qwen2Config

from llm_modules import CombinedModel, VisibleKnowledge

GOLDEN = Path(__file__).parents[2] / "shared" / "reference_golden"

# published name -> ours, tried in this order
RENAMES = (
    ("qwen.pre_proj.", "bridge.pre_projection."),
    ("qwen.proj.", "bridge.skip_projection."),
    ("qwen.intermediate_layers.", "bridge.compress."),
    ("qwen.cross_attention_layers.", "bridge.layers."),
    ("gptneo.base_model.transformer.", "generator."),
    ("gptneo.new_lm_head.", "head."),
    (".cross_attn.norm1.", ".knowledge_norm."),
    (".cross_attn.norm2.", ".query_norm."),
    (".cross_attn.q_proj.", ".query."),
    (".cross_attn.k_proj.", ".key."),
    (".cross_attn.v_proj.", ".value."),
    (".cross_attn.out_proj.", ".output."),
    (".adapter.fc1.", ".adapter.down."),
    (".adapter.fc2.", ".adapter.up."),
)
UNUSED = ("generator.wte.weight", "gptneo.base_model.lm_head.weight")  # never reached by the published forward

pytestmark = [
    pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the published code's outputs are not at {GOLDEN}"),
    pytest.mark.filterwarnings("ignore:visibility='bidirectional'"),
]


def renamed(name):
    for published, ours in RENAMES:
        name = name.replace(published, ours)
    return name


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def published_pair():
    weights = torch.load(GOLDEN / "best_model_checkpoint.pth", weights_only=True)["model_state_dict"]
    source = AutoModelForCausalLM.from_config(Qwen2Config(**json.loads((GOLDEN / "source_config.json").read_text())))
    prefix = "qwen.model."
    source.load_state_dict({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)})
    pair = CombinedModel.from_modules(
        source,
        GPTNeoConfig(**json.loads((GOLDEN / "generator_config.json").read_text())),
        visibility="bidirectional",
        head="new",
    ).eval()
    ours = {renamed(name): weight for name, weight in weights.items() if not name.startswith(prefix)}
    pair.load_state_dict({name: weight for name, weight in ours.items() if name not in UNUSED}, strict=True)
    return pair


@torch.no_grad()
def test_bridge_states_equal_the_published_ones(published_pair, golden):
    known = published_pair.read(golden["input_ids"])
    z = published_pair.bridge(known.states, visible=VisibleKnowledge(known.mask, bidirectional=True))
    torch.testing.assert_close(z, golden["bridge_states"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_equal_the_published_ones(published_pair, golden):
    torch.testing.assert_close(published_pair(golden["input_ids"]).logits, golden["logits"], atol=1e-4, rtol=0)


def test_greedy_continuation_equals_the_published_one(published_pair, golden):
    prompt, expected = golden["greedy_prompt"], golden["greedy_continuation"]
    written = published_pair.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    assert torch.equal(written[:, prompt.shape[1] :], expected)
