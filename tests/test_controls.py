"""A silenced source changes what the pair says, and nothing else."""

import pytest
import torch

from llm_modules.controls import with_zeroed_knowledge
from llm_modules.fingerprint import fingerprint_model
from tests.conftest import random_ids, randomise_, tiny_pair


@pytest.mark.parametrize("choices", [{"taps": [0, -1]}, {"taps": [0]}, {"visibility": "causal", "start": "identity"}])
@torch.no_grad()
def test_zeroed_knowledge_changes_answers_and_leaves_the_model_as_it_was(choices):
    model, ids = randomise_(tiny_pair(**choices)), random_ids(2, 7)
    before, fingerprint = model(ids).logits, fingerprint_model(model.source.model)
    silent = with_zeroed_knowledge(model)
    states = silent.read(ids).states
    assert not states.any() and states.shape == model.read(ids).states.shape
    assert not torch.allclose(silent(ids).logits, before, atol=1e-3)
    other = random_ids(2, 7, seed=5)
    if model.config.visibility == "causal":  # there the words come through the source alone
        assert torch.equal(silent(ids).logits, silent(other).logits)
    assert silent.generate(ids, max_new_tokens=5, do_sample=False).shape == (2, 12)
    assert torch.equal(model(ids).logits, before)
    assert fingerprint_model(model.source.model) == fingerprint
    assert model.read(ids).states.any()


def test_weights_are_shared_and_tables_stay():
    model = tiny_pair()
    silent = with_zeroed_knowledge(model)
    assert silent.bridge is model.bridge and silent.generator is model.generator
    assert silent.source.output_matrix is model.source.output_matrix
    assert torch.equal(silent.source.embed(random_ids(1, 4)), model.source.embed(random_ids(1, 4)))
    assert type(model.source) is not type(silent.source)
