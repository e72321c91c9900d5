"""Modules by name, on one source: what can be served, and what is refused before anything is asked."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_modules import UserError
from llm_modules.serving.modules import Modules, UnknownModuleError
from tests.conftest import tiny_pair, tiny_source_config, tiny_tokenizer


@pytest.fixture
def folders(tmp_path, talking_source):
    """Folders of two pairs on one source."""
    for name in ("facts/model", "sums", "again/model"):
        tiny_pair(source=str(talking_source)).save_pretrained(tmp_path / name)
    return tmp_path


def opened(*models, **others):
    return Modules.open([str(model) for model in models], **({"max_shared_tokens": 100} | others))


def test_modules_share_one_source_and_are_listed_with_it(folders):
    modules = opened(folders / "facts" / "model", f"other={folders / 'sums'}")
    assert [(module.name, module.parent) for module in modules] == [
        ("source", None),
        ("facts", "source"),
        ("other", "source"),
    ]
    assert modules.get("facts").model.source is modules.get("other").model.source is modules.source


def test_generator_that_was_trained_alone_is_served_without_a_parent(folders):
    alone = AutoModelForCausalLM.from_config(tiny_source_config(hidden_size=18))
    alone.save_pretrained(folders / "alone")
    tiny_tokenizer().save_pretrained(folders / "alone")
    modules = opened(folders / "alone", folders / "facts" / "model")  # before the pair that brings the source
    assert modules.get("alone").parent is None
    with pytest.raises(UserError, match="is a pair, so there is no source to serve"):
        opened(folders / "alone")


def test_module_is_called_as_in_a_chat_unless_told(folders):
    modules = opened(folders / "facts" / "model", folders / "sums")
    assert [module.name for module in modules] == ["source", "facts", "sums"]
    assert modules.load(folders / "again" / "model").name == "again"


def test_module_of_another_source_is_refused(folders, tmp_path):
    torch.manual_seed(6)
    AutoModelForCausalLM.from_config(tiny_source_config()).save_pretrained(tmp_path / "other_source")
    tiny_tokenizer().save_pretrained(tmp_path / "other_source")
    tiny_pair(source=str(tmp_path / "other_source")).save_pretrained(tmp_path / "stranger")
    with pytest.raises(UserError, match="was trained with the source .*other_source"):
        opened(folders / "facts" / "model", tmp_path / "stranger")
    modules = opened(folders / "facts" / "model")
    with pytest.raises(UserError, match="load it with the source it was trained with"):
        modules.load(tmp_path / "stranger")
    assert [module.name for module in modules] == ["source", "facts"]


def test_pair_that_reads_its_future_is_refused(folders, tmp_path, talking_source):
    with pytest.warns(UserWarning, match="bidirectional"):
        leaky = tiny_pair(source=str(talking_source), visibility="bidirectional", head="new")
    leaky.save_pretrained(tmp_path / "leaky")
    with pytest.warns(UserWarning, match="bidirectional"), pytest.raises(UserError, match="cannot be served"):
        opened(tmp_path / "leaky")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("facts", "facts"), "module name 'facts' is taken"),
        (("source", "sums"), "module name 'source' is taken"),
    ],
)
def test_names_that_are_taken_are_refused(folders, names, message):
    models = [f"{name}={folders / kind / 'model'}" for name, kind in zip(names, ("facts", "sums"), strict=True)]
    with pytest.raises(UserError, match=message):
        opened(*models)


def test_name_that_could_be_mistaken_for_something_else_is_refused(folders):
    odd = folders / "<script>alert(1)<"
    (folders / "facts" / "model").rename(odd)
    with pytest.raises(UserError, match="must be letters, digits"):
        opened(odd)
    assert opened(f"plain={odd}").get("plain")


def test_missing_and_broken_folders_are_refused(folders, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        opened(tmp_path / "nowhere")
    weights = folders / "sums" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(UserError, match="changed or damaged"):
        opened(folders / "facts" / "model", folders / "sums")


def test_loading_and_unloading(folders):
    modules = opened(folders / "facts" / "model")
    loaded = modules.load(folders / "sums")
    assert modules.get("sums") is loaded
    with pytest.raises(UserError, match="'sums' is taken"):
        modules.load(folders / "sums")
    modules.unload("sums")
    with pytest.raises(UnknownModuleError, match="model='sums' is not loaded; choose one of source, facts"):
        modules.get("sums")
    with pytest.raises(UserError, match="cannot be unloaded"):
        modules.unload("source")


def test_source_without_a_tokenizer_is_refused(tmp_path, stored_source):
    pair = tiny_pair(source=str(stored_source))
    pair.tokenizer = tiny_tokenizer()
    pair.save_pretrained(tmp_path / "pair")
    with pytest.raises(UserError, match="has no tokenizer, so nothing can be asked"):
        opened(tmp_path / "pair")
