"""The generator: a body without words, from a configuration or from pretrained weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from llm_modules import CombinedModel, UserError
from llm_modules.generator import load_generator, position_limit
from tests.conftest import D_SOURCE, VOCAB, random_ids, randomise_, tiny_generator_config, tiny_pair

WORDS = 71  # of the generator's own vocabulary, which must go


def pretrained(**changes):
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(tiny_generator_config(vocab_size=WORDS, **changes))


def test_token_table_and_head_are_neither_stored_nor_trained(tmp_path):
    model = tiny_pair(generator=tiny_generator_config(vocab_size=WORDS))
    assert not any(WORDS in parameter.shape for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert not any(WORDS in weight.shape for weight in stored.values())
    assert not any("wte" in name or "lm_head" in name for name in stored)


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_a_source_head_adds_nothing_as_large_as_the_vocabulary(visibility):
    model = tiny_pair(visibility=visibility, head="source")
    assert not any(VOCAB in parameter.shape for parameter in model.parameters())
    assert model.head.weight.shape == (D_SOURCE, 16)


def test_a_new_head_is_as_large_as_the_vocabulary_and_has_no_bias():
    model = tiny_pair(head="new")
    assert model.head.weight.shape == (VOCAB, 16)
    assert model.head.bias is None


@pytest.mark.parametrize("given", ["folder", "text", "object", "bf16 object", "body"])
def test_a_pretrained_generator_keeps_its_weights(given, tmp_path):
    original = pretrained()
    weights = {name: weight.clone() for name, weight in original.transformer.state_dict().items() if "wte" not in name}
    original.save_pretrained(tmp_path / "generator")
    generator = {
        "folder": tmp_path / "generator",
        "text": str(tmp_path / "generator"),
        "object": original,
        "bf16 object": AutoModelForCausalLM.from_pretrained(tmp_path / "generator", dtype=torch.bfloat16),
        "body": original.transformer,
    }[given]
    model = tiny_pair(generator=generator)
    found = model.generator.state_dict()
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        expected = weight.bfloat16().float() if given == "bf16 object" else weight
        assert torch.equal(found[name], expected)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_pretrained_generator_survives_saving_and_loading(tmp_path, stored_source):
    model = randomise_(tiny_pair(source=stored_source, generator=pretrained()))
    model.save_pretrained(tmp_path / "model")
    loaded = CombinedModel.from_pretrained(tmp_path / "model").eval()
    ids = random_ids(1, 6)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_configuration_gives_random_weights_that_the_seed_decides():
    first, same, other = tiny_pair(seed=1), tiny_pair(seed=1), tiny_pair(seed=2)
    for (name, a), b, c in zip(first.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.ndim < 2 or not torch.equal(a, c), name


def test_a_configuration_may_be_a_dict():
    fields = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = tiny_pair(generator=fields | {"intermediate_size": 20, "vocab_size": 5})
    assert model.config.generator.model_type == "llama"
    assert len(model.generator.layers) == 1


def test_the_given_configuration_is_not_changed():
    given = tiny_generator_config()
    before = given.to_dict()
    model = tiny_pair(generator=given)
    assert given.to_dict() == before
    assert model.config.generator is not given


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({"hidden_size": 16}, "names no model_type; add one, for example model_type: gpt_neo"),
        ({"model_type": "gpt_nobody"}, "gpt_nobody.* is no configuration that transformers knows"),
        ("./no/such/folder", "'./no/such/folder' could not be loaded .*give a folder, a reachable hub id, or a config"),
    ],
    ids=str,
)
def test_a_generator_that_cannot_be_is_refused(generator, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        load_generator(generator)


def test_pretrained_weights_with_a_hole_are_refused(tmp_path):
    pretrained().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.h.0.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights \\(h.0.mlp.c_fc.weight\\); fetch or save it again"):
        load_generator(tmp_path)


@pytest.mark.parametrize(
    ("generator", "limit"),
    [
        (tiny_generator_config(max_position_embeddings=40), 40),
        (GPT2Config(vocab_size=5, n_embd=16, n_head=2, n_layer=1, n_positions=24, bos_token_id=1, eos_token_id=2), 24),
        (
            LlamaConfig(vocab_size=5, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=20),
            None,
        ),
    ],
    ids=["gpt_neo", "gpt2", "llama"],
)
def test_only_a_table_of_positions_limits_the_length(generator, limit):
    assert position_limit(tiny_pair(generator=generator).generator) == limit


def test_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="d_generator=16 is not divisible by num_heads=5; choose one of 1, 2, 4, 8, 16"):
        tiny_pair(num_heads=5)


def test_bidirectional_warns_loudly():
    with pytest.warns(UserWarning, match="lets every position read the source's states of the tokens it must predict"):
        tiny_pair(visibility="bidirectional")


@pytest.mark.filterwarnings("ignore:visibility='bidirectional'")
def test_bidirectional_warns_again_when_it_is_loaded(tmp_path):
    model = tiny_pair(visibility="bidirectional")
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="It is here to reproduce the paper only"):
        CombinedModel.from_pretrained(tmp_path, source=model.source)
