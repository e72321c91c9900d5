"""A generator that starts as the source's first blocks is what the source computes up to there, and trains."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from llm_modules import CombinedModel, Source, UserError
from llm_modules.blocks import first_blocks, shortened
from tests.conftest import D_SOURCE, VOCAB, random_ids, randomise_, tiny_generator_config, tiny_pair, tiny_source_config

SOURCES = {
    "llama": tiny_source_config(num_hidden_layers=5),
    "gpt_neo": tiny_generator_config(num_layers=5, attention_types=[[["global", "local"], 2], [["local"], 1]]),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=D_SOURCE, n_head=3, n_layer=5, bos_token_id=1, eos_token_id=2),
    "qwen2": Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=D_SOURCE,
        intermediate_size=20,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        max_window_layers=1,
        sliding_window=4,
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("num_blocks", [1, 2, 5])
@torch.no_grad()
def test_first_blocks_compute_what_the_source_computes_up_to_there(kind, num_blocks):
    torch.manual_seed(0)
    source = AutoModelForCausalLM.from_config(SOURCES[kind]).eval()
    copied = first_blocks(source.base_model, num_blocks).eval()
    embeds = source.get_input_embeddings()(random_ids(2, 9) % SOURCES[kind].vocab_size)
    norm = next(part for name, part in source.base_model.named_children() if name in ("norm", "ln_f"))
    expected = source.base_model(inputs_embeds=embeds, output_hidden_states=True).hidden_states[num_blocks]
    expected = expected if num_blocks == 5 else norm(expected)  # the last of them is after it
    torch.testing.assert_close(copied(inputs_embeds=embeds).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_a_copy_is_in_fp32_and_shares_nothing_with_the_source():
    source = Source.of(AutoModelForCausalLM.from_config(SOURCES["llama"], dtype=torch.bfloat16))
    model = randomise_(tiny_pair(source=source, generator={"first_blocks_of_source": 2}))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.generator.parameters())
    pointers = {parameter.data_ptr() for parameter in source.model.parameters()}
    assert not pointers & {parameter.data_ptr() for parameter in model.parameters()}
    assert model.config.d_generator == model.config.d_source == D_SOURCE


def test_what_is_saved_is_a_plain_configuration(stored_source, tmp_path):
    model = randomise_(tiny_pair(source=stored_source, generator={"first_blocks_of_source": 2}))
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())["generator"]
    assert (saved["model_type"], saved["num_hidden_layers"], saved["dtype"]) == ("llama", 2, "float32")
    assert "first_blocks" not in json.dumps(saved) and str(stored_source) not in json.dumps(saved)
    loaded = CombinedModel.from_pretrained(tmp_path / "model").eval()
    ids = random_ids(1, 6)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_the_sources_configuration_is_not_changed():
    before = SOURCES["gpt_neo"].to_dict()
    assert shortened(SOURCES["gpt_neo"], 3).attention_layers == ["global", "local", "global"]
    assert SOURCES["gpt_neo"].to_dict() == before


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({"first_blocks_of_source": 0}, "first_blocks_of_source=0 must be 1 to 3, the blocks of the source"),
        ({"first_blocks_of_source": 4}, "first_blocks_of_source=4 must be 1 to 3"),
        ({"first_blocks_of_source": "two"}, "first_blocks_of_source='two' is no number of blocks; give one"),
        ({"first_blocks_of_source": True}, "first_blocks_of_source=True is no number of blocks"),
        (
            {"first_blocks_of_source": 2, "model_type": "llama", "hidden_size": 16},
            "whose shape is the source's, and hidden_size, model_type; give one or the other",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_copied_is_refused(generator, message):
    with pytest.raises(UserError, match=message):
        tiny_pair(generator=generator)


def test_a_source_without_its_body_has_no_blocks_to_copy(stored_source):
    tables = Source.load(stored_source, tables_only=True)
    with pytest.raises(UserError, match="first_blocks_of_source=2 copies weights of a source; load one whole"):
        tiny_pair(source=tables, generator={"first_blocks_of_source": 2})
