"""A source held in 8 or 4 bits."""

import pytest
import torch

from llm_modules import CombinedModel, Source
from llm_modules.errors import UserError
from llm_modules.fingerprint import fingerprint_model
from tests.conftest import random_ids, randomise_, tiny_pair

pytest.importorskip("bitsandbytes", reason="needs the extra `quantization`")


@torch.no_grad()
def logits_of(model, ids):
    return model(ids).logits


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_a_quantised_source_trains_a_float32_partner_and_stays_as_it_was(visibility, quantization, stored_source):
    model = tiny_pair(source=stored_source, source_quantization=quantization, visibility=visibility).train()
    assert model.source.quantization == quantization
    before = fingerprint_model(model.source.model)
    ids = random_ids(2, 9)
    model(ids, labels=ids, prompt_mask=(torch.arange(9) < 3).expand_as(ids)).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    assert fingerprint_model(model.source.model) == before
    assert not any(weight.requires_grad for weight in model.source.model.parameters())
    assert model.eval().generate(ids, max_new_tokens=3, do_sample=False).shape[1] > 9


@pytest.mark.parametrize(("quantization", "nearness"), [("8bit", 0.99), ("4bit", 0.8)])
def test_its_tables_stay_whole_and_its_states_near(quantization, nearness, stored_source):
    whole, few = Source.load(stored_source), Source.load(stored_source, quantization=quantization)
    assert torch.equal(whole.embedding, few.embedding)
    assert torch.equal(whole.output_matrix, few.output_matrix)
    assert few.fingerprint == whole.fingerprint
    ids = random_ids(2, 9)
    states = [source.read(ids, attention_mask=torch.ones_like(ids), taps=[3]) for source in (whole, few)]
    assert not torch.equal(*states)
    assert torch.cosine_similarity(*states, dim=-1).mean() > nearness


def test_a_pair_loads_its_source_as_it_was_trained_and_warns_of_another(stored_source, tmp_path):
    model = randomise_(tiny_pair(source=stored_source, source_quantization="4bit")).eval()
    model.save_pretrained(tmp_path / "pair")
    loaded = CombinedModel.from_pretrained(tmp_path / "pair").eval()
    assert loaded.source.quantization == "4bit"
    ids = random_ids(2, 9)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    with pytest.warns(UserWarning, match="trained with its source in 4bit and is given one in full precision"):
        CombinedModel.from_pretrained(tmp_path / "pair", source=Source.load(stored_source))


def test_four_bits_stay_as_loaded_on_cpus_that_bitsandbytes_would_lay_them_out_for(stored_source, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    source = Source.load(stored_source, quantization="4bit")
    before, ids = fingerprint_model(source.model), random_ids(2, 9)
    source.read(ids, attention_mask=torch.ones_like(ids), taps=[3])
    assert fingerprint_model(source.model) == before


def test_another_name_is_refused(stored_source):
    with pytest.raises(UserError, match="quantization='2bit' is not known; choose one of 8bit, 4bit"):
        Source.load(stored_source, quantization="2bit")


def test_a_quantised_source_does_not_move(stored_source):
    source = Source.load(stored_source, quantization="8bit")
    with pytest.raises(UserError, match="8bit was made on cpu and cannot move to meta; load it where the model is"):
        source.to(torch.device("meta"))
