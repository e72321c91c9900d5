"""A saved model is small, complete, checked when it is loaded, and never half written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llm_modules import CombinedConfig, CombinedModel, Source, UserError
from llm_modules.checksums import SUMS
from llm_modules.files import write_text
from llm_modules.folders import written_beside
from tests.conftest import VOCAB, random_ids, randomise_, tiny_generator_config, tiny_pair, tiny_source_config

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def source_with_tokenizer(stored_source):
    """The stored source, with a tokenizer of 60 tokens and a chat template beside it."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w2")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(stored_source)
    return stored_source


@pytest.fixture
def model(source_with_tokenizer):
    return randomise_(tiny_pair(source=source_with_tokenizer))


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@torch.no_grad()
def logits_of(model):
    return model(random_ids(2, 7)).logits


def edit_config(folder, **changes):
    """As one who means it: the checksums go, and the fingerprint decides."""
    (folder / SUMS).unlink(missing_ok=True)
    fields = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (fields[section] if section else fields)[key] = value
    (folder / "config.json").write_text(json.dumps(fields))


# -- what is written ---------------------------------------------------------------------------------------------------


def test_folder_holds_weights_configuration_tokenizer_template_and_card(saved):
    names = {path.name for path in saved.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert AutoTokenizer.from_pretrained(saved).chat_template == TEMPLATE


def test_folder_holds_no_weights_of_the_source(saved, model):
    stored = load_file(saved / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"bridge", "generator", "head"}
    assert set(stored) == {name for name, _ in model.named_parameters()}
    assert not any(VOCAB in weight.shape for weight in stored.values())
    size = sum(weight.numel() * 4 for weight in stored.values())
    assert (saved / "model.safetensors").stat().st_size < size + 20_000


def test_configuration_names_the_source_and_its_fingerprint(saved, source_with_tokenizer):
    fields = json.loads((saved / "config.json").read_text())
    assert fields["source_id"] == str(source_with_tokenizer)
    assert fields["source_revision"] is None
    assert fields["source_fingerprint"] == Source.load(source_with_tokenizer).fingerprint


def test_card_says_what_was_trained_and_which_source_it_needs(saved, model):
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: llm-modules\n")
    assert f"{sum(p.numel() for p in model.parameters()):,} trained parameters" in card
    for part in (
        str(model.config.source_id),
        model.config.source_fingerprint,
        "`prompt`",
        "gpt_neo, width 16, 2 layers",
    ):
        assert part in card


def test_a_source_named_by_a_relative_path_is_found_from_anywhere(stored_source, tmp_path, monkeypatch):
    monkeypatch.chdir(stored_source.parent)
    model = tiny_pair(source=stored_source.name)
    model.save_pretrained("model")
    monkeypatch.chdir("/")
    assert torch.equal(logits_of(CombinedModel.from_pretrained(tmp_path / "model").eval()), logits_of(model))


def test_saving_in_shards_loads_again(model, tmp_path):
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    assert torch.equal(logits_of(CombinedModel.from_pretrained(tmp_path / "model").eval()), logits_of(model))


# -- where it is written -----------------------------------------------------------------------------------------------


def test_saving_over_a_model_replaces_it_and_leaves_no_other_folder(saved, model, tmp_path):
    before = {path.name for path in tmp_path.iterdir()}
    (saved / "notes.txt").write_text("mine")
    randomise_(model)
    model.save_pretrained(saved)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (saved / "notes.txt").read_text() == "mine"
    assert torch.equal(logits_of(CombinedModel.from_pretrained(saved).eval()), logits_of(model))


def test_saving_over_a_model_in_shards_leaves_no_stale_weights(model, tmp_path):
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    model.save_pretrained(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").glob("*.safetensors*")] == ["model.safetensors"]
    CombinedModel.from_pretrained(tmp_path / "model")


def test_a_failed_save_leaves_the_old_model_and_no_other_folder(saved, model, tmp_path, monkeypatch):
    before, old = {path.name for path in tmp_path.iterdir()}, logits_of(model)

    def fail(*args):
        raise RuntimeError("interrupted")

    monkeypatch.setattr("llm_modules.storage.model_card", fail)
    randomise_(model)
    for folder in (saved, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="interrupted"):
            model.save_pretrained(folder)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert torch.equal(logits_of(CombinedModel.from_pretrained(saved).eval()), old)


def test_a_folder_that_cannot_be_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file/model cannot be written .*; choose another output folder"):
        model.save_pretrained(tmp_path / "file" / "model")
    with pytest.raises(UserError, match="file/deeper/model cannot be written"):
        model.save_pretrained(tmp_path / "file" / "deeper" / "model")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_text_is_written_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "a" / "file.txt", "one")
    write_text(tmp_path / "a" / "file.txt", "two")
    assert (tmp_path / "a" / "file.txt").read_text() == "two"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.txt"]


def test_a_folder_takes_its_name_only_when_it_is_complete(tmp_path):
    with written_beside(tmp_path / "folder") as beside:
        (beside / "config.json").write_text("{}")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "config.json").is_file()
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["folder", "text", "auto", "source folder", "source object", "source model"])
def test_every_way_of_loading_gives_the_same_model(how, saved, model, source_with_tokenizer):
    load = CombinedModel.from_pretrained
    loaded = {
        "folder": lambda: load(saved),
        "text": lambda: load(str(saved)),
        "auto": lambda: AutoModelForCausalLM.from_pretrained(saved),
        "source folder": lambda: load(saved, source=source_with_tokenizer),
        "source object": lambda: load(saved, source=model.source),
        "source model": lambda: load(saved, source=AutoModelForCausalLM.from_pretrained(source_with_tokenizer)),
    }[how]()
    assert not loaded.training
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_dtype_asked_for_is_the_partners_and_not_the_sources(saved, model):
    loaded = CombinedModel.from_pretrained(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.source.dtype == torch.float32
    torch.testing.assert_close(logits_of(loaded).float(), logits_of(model), atol=1.0, rtol=0.1)


def test_auto_config_reads_the_configuration(saved, model):
    config = AutoConfig.from_pretrained(saved)
    assert isinstance(config, CombinedConfig)
    assert config.to_dict() | {"_name_or_path": ""} == model.config.to_dict()


def test_many_models_share_one_source(saved, model):
    loaded = [CombinedModel.from_pretrained(saved, source=model.source) for _ in range(2)]
    assert all(twin.source is model.source for twin in loaded)


def test_special_tokens_are_the_sources(saved):
    generation = CombinedModel.from_pretrained(saved).generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)


def test_another_source_is_refused_with_both_fingerprints(saved, model):
    torch.manual_seed(99)
    other = Source.of(tiny_source_config())
    with pytest.raises(UserError) as raised:
        CombinedModel.from_pretrained(saved, source=other)
    for part in (other.fingerprint, model.source.fingerprint, str(model.config.source_id), "trained with the source"):
        assert part in str(raised.value)


def test_a_source_that_changed_in_its_folder_is_refused(saved, source_with_tokenizer):
    torch.manual_seed(99)
    AutoModelForCausalLM.from_config(tiny_source_config()).save_pretrained(source_with_tokenizer)
    with pytest.raises(UserError, match="was trained with the source"):
        CombinedModel.from_pretrained(saved)


def test_a_source_that_moved_can_be_passed_in(saved, model, source_with_tokenizer, tmp_path):
    moved = shutil.move(source_with_tokenizer, tmp_path / "moved")
    with pytest.raises(UserError, match="cannot be loaded: .*pass it as from_pretrained\\(..., source=...\\)"):
        CombinedModel.from_pretrained(saved)
    assert torch.equal(logits_of(CombinedModel.from_pretrained(saved, source=moved)), logits_of(model))


def test_a_source_that_was_never_stored_must_be_passed_in(tmp_path):
    model = tiny_pair()
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="was never stored; pass it as from_pretrained\\(..., source=...\\)"):
        CombinedModel.from_pretrained(tmp_path / "model")
    loaded = CombinedModel.from_pretrained(tmp_path / "model", source=model.source.model)
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_a_model_without_its_source_says_so(saved):
    bare = CombinedModel(AutoConfig.from_pretrained(saved))
    with pytest.raises(UserError, match="this model has no source yet"):
        bare(random_ids(1, 4))


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 5, 400, -1])
def test_truncated_weights_are_refused(saved, kept):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(UserError, match="is not what was saved: model.safetensors .*changed or damaged"):
        CombinedModel.from_pretrained(saved)
    (saved / SUMS).unlink()
    with pytest.raises(UserError, match="model.safetensors cannot be read .*cut off or damaged"):
        CombinedModel.from_pretrained(saved)


@pytest.mark.parametrize("place", [-1, -5000, 20_000])
def test_one_changed_byte_of_the_weights_is_refused(saved, place):
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[place] ^= 1
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is not what was saved: .*changed or damaged: restore it or save it again"):
        CombinedModel.from_pretrained(saved)
    (saved / SUMS).unlink()
    with pytest.raises(UserError, match="is not what was saved .*changed or damaged: restore or save it again"):
        CombinedModel.from_pretrained(saved)


def test_missing_weights_are_refused(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is not what was saved: model.safetensors is missing"):
        CombinedModel.from_pretrained(saved)
    (saved / SUMS).unlink()
    with pytest.raises(UserError, match="holds no \\*.safetensors file"):
        CombinedModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"visibility": "causal"},
        {"num_heads": 4},
        {"start": "identity"},
        {"taps": [1]},
        {"generator__activation_function": "relu"},
        {"source_fingerprint": "0" * 32},
        {"weights_fingerprint": None},
    ],
    ids=str,
)
def test_an_edited_choice_is_refused(saved, changes):
    edit_config(saved, **changes)
    with pytest.raises(UserError, match="is not what was saved"):
        CombinedModel.from_pretrained(saved)


def test_layers_that_were_moved_are_refused(tmp_path):
    generator = tiny_generator_config(num_layers=4, attention_types=[[["global"], 4]])
    model = tiny_pair(generator=generator, placement="interleaved", interleave_every=3, num_bridge_layers=0)
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, interleave_every=4)  # one layer as before, of the same shape
    with pytest.raises(UserError, match="is not what was saved"):
        CombinedModel.from_pretrained(tmp_path, source=model.source)


def test_a_folder_from_before_layers_could_be_placed_loads(saved, model):
    fields = json.loads((saved / "config.json").read_text())
    (saved / SUMS).unlink()
    for name in ("placement", "interleave_every", "pre_projection", "gate_start"):
        del fields[name]
    (saved / "config.json").write_text(json.dumps(fields))
    assert torch.equal(logits_of(CombinedModel.from_pretrained(saved).eval()), logits_of(model))


@pytest.mark.parametrize(
    "changes",
    [{"d_adapter": 11}, {"num_bridge_layers": 3}, {"source__hidden_size": 30}, {"pre_projection": False}],
    ids=str,
)
def test_edited_sizes_are_refused(saved, changes):
    edit_config(saved, **changes)
    with pytest.raises(UserError, match="does not hold this model's weights"):
        CombinedModel.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visibility": "psychic"}, "visibility='psychic' is not known"),
        ({"num_heads": 3}, "not divisible by num_heads=3"),
        ({"generator__model_type": "nobody"}, "nobody"),
    ],
    ids=str,
)
def test_an_impossible_configuration_is_refused(saved, changes, message):
    edit_config(saved, **changes)
    with pytest.raises(UserError, match=message):
        CombinedModel.from_pretrained(saved)


def test_a_broken_or_missing_configuration_is_refused(saved, source_with_tokenizer):
    (saved / "config.json").write_text((saved / "config.json").read_text()[:100])
    (saved / SUMS).unlink()
    with pytest.raises(UserError, match="config.json cannot be read"):
        CombinedModel.from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(UserError, match="holds no config.json; give a folder that save_pretrained wrote"):
        CombinedModel.from_pretrained(saved)
    with pytest.raises(UserError, match="holds a llama model, not a combined model"):
        CombinedModel.from_pretrained(source_with_tokenizer)


def test_an_unreachable_model_id_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'nobody/nothing' is no local folder and could not be fetched from the hub"):
        CombinedModel.from_pretrained("nobody/nothing")
