"""The generator alone answers the pair's calls, and trains, saves and loads as the pair does."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from llm_modules import UserError
from llm_modules.baselines import GeneratorAlone
from llm_modules.data.templates import Example
from llm_modules.loss import IGNORED, LossVocabulary
from llm_modules.settings import TrainingSettings
from llm_modules.training import TrainingData, fit, last_checkpoint
from llm_modules.writing import write
from tests.conftest import VOCAB, random_ids, tiny_generator_config, tiny_pair, tiny_source_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SHAPES = {
    "gpt_neo": tiny_generator_config,
    "llama": lambda: tiny_source_config(vocab_size=5, hidden_size=12, bos_token_id=None),
}


def alone(shape="gpt_neo", seed=0):
    torch.manual_seed(seed)
    special = tiny_pair().generation_config
    return GeneratorAlone.from_config(SHAPES[shape](), vocab_size=VOCAB, generation_config=special).eval()


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_is_the_cross_entropy_of_its_logits(shape):
    model, ids = alone(shape), random_ids(3, 8)
    labels = ids.clone()
    labels[:, :3] = IGNORED
    logits = model(ids).logits
    expected = F.cross_entropy(logits[:, 2:-1].flatten(0, 1), ids[:, 3:].flatten())
    prompt_mask = (torch.arange(8) < 3).expand(3, 8)
    assert model(ids, labels=labels, prompt_mask=prompt_mask).loss == pytest.approx(expected.item(), abs=1e-5)
    summed = model(ids, labels=labels, num_items_in_batch=30).loss
    assert summed == pytest.approx(expected.item() * 15 / 30, abs=1e-5)
    everything = LossVocabulary(torch.arange(VOCAB), torch.zeros(VOCAB))
    assert model(ids, labels=labels, loss_vocabulary=everything).loss == pytest.approx(expected.item(), abs=1e-5)


def test_labels_without_a_position_are_refused():
    with pytest.raises(UserError, match="no position has a label"):
        alone()(random_ids(1, 4), labels=torch.full((1, 4), IGNORED))


@pytest.mark.parametrize("shape", SHAPES)
def test_tied_table_is_counted_once(shape):
    model = alone(shape)
    body = model.model.base_model
    assert model.model.get_output_embeddings().weight is model.model.get_input_embeddings().weight
    assert model.num_parameters() == sum(p.numel() for p in body.parameters())
    assert model.model.get_input_embeddings().weight.shape[0] == VOCAB


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_stored_and_loaded_with_the_tied_table_once(shape, tmp_path):
    model, other = alone(shape), alone(shape, seed=4)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == model.num_parameters()
    ids = random_ids(2, 6)
    assert torch.equal(model(ids).logits, other(ids).logits)
    assert other.model.get_output_embeddings().weight is other.model.get_input_embeddings().weight


def test_special_tokens_are_the_sources():
    config = alone().config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (VOCAB, 1, 2)


def test_answers_are_written_as_the_pairs_are():
    prompts = [[5, 6, 7], [8], [9, 10]]
    for model in (alone(), tiny_pair()):
        written = write(model, prompts, TOKENIZER, max_new_tokens=6)
        assert len(written.texts) == 3 and 0 < written.num_tokens <= 18


@pytest.mark.parametrize("shape", SHAPES)
def test_training_goes_through_checkpoints_as_the_pairs_does(shape, tmp_path):
    data = TrainingData([Example([5, n], [n, 6, 2]) for n in range(10, 20)], [Example([5, 9], [9, 6, 2])])
    fields = {
        "output_dir": tmp_path,
        "batch_size": 2,
        "save_steps": 3,
        "eval_steps": 3,
        "sampled_words": 4,
        "early_stopping_patience": 9,
    }
    model = alone(shape)
    trainer = fit(model, data, TrainingSettings(max_steps=6, **fields), tokenizer=TOKENIZER)
    assert trainer.state.global_step == 6
    assert last_checkpoint(tmp_path / "checkpoints").name == "checkpoint-6"
    again = alone(shape, seed=4)
    fit(again, data, TrainingSettings(max_steps=6, resume=True, **fields), tokenizer=TOKENIZER)
    for (name, first), second in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second), name
    assert again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight
    longer = fit(again, data, TrainingSettings(max_steps=8, resume=True, **fields), tokenizer=TOKENIZER)
    assert longer.state.global_step == 8
