"""What comes from elsewhere is read, never run, and names nothing outside its own folder."""

import hashlib
import json
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_modules import CombinedModel, Source, UserError
from llm_modules.checkpoint import read_checkpoint
from llm_modules.checksums import SUMS
from llm_modules.loading import load_causal_lm
from llm_modules.published import import_folder
from llm_modules.settings import ModelSettings, load_settings
from llm_modules.training import load_source
from tests.conftest import tiny_pair, tiny_source_config, tiny_tokenizer

EVIL = "raise SystemExit('code of a stranger was run')\n"


@pytest.fixture
def with_code(stored_source):
    """A model that comes with code of its own."""
    tiny_tokenizer().save_pretrained(stored_source)
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoModel": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", None]}),
    ):
        fields = json.loads((stored_source / name).read_text())
        changes = {"auto_map": classes} | ({"model_type": "evil"} if name == "config.json" else {})
        (stored_source / name).write_text(json.dumps(fields | changes))
    (stored_source / "evil.py").write_text(EVIL)
    return stored_source


@pytest.mark.parametrize("load", [
    Source.load, load_causal_lm, CombinedModel.from_pretrained, lambda folder: tiny_pair(generator=str(folder)),
])  # fmt: skip
def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(with_code, load, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError):
        load(with_code)


def test_weights_as_a_pickle_are_refused(tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_source_config())
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for load in (Source.load, load_causal_lm, lambda folder: tiny_pair(generator=str(folder))):
        with pytest.raises(UserError, match="safetensors"):
            load(tmp_path)


def test_an_index_that_names_weights_elsewhere_is_refused(tmp_path):
    model = tiny_pair()
    model.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    model.save_pretrained(tmp_path / "other")
    (tmp_path / "model" / SUMS).unlink()
    index = tmp_path / "model" / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    name = next(iter(fields["weight_map"]))
    fields["weight_map"][name] = "../other/model.safetensors"
    index.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"names ../other/model.safetensors, which is not in its folder"):
        CombinedModel.from_pretrained(tmp_path / "model", source=model.source)


def test_yaml_makes_no_objects(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text(f"data: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'touched'}]")
    with pytest.raises(UserError, match="is not valid YAML: could not determine a constructor"):
        load_settings(file)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("text", "message"), [
    ("a: &a [*a]", "holds more than 100,000 values"),
    ("a: " + "[" * 5000, "more than 100 values are nested within one another"),
    ("a: " + "x" * 200_001, "more than 200,000 characters"),
    ("- " * 30_000, "more than 100 values are nested within one another"),
    ("a: 2001-13-45", "month must be in 1..12"),
    ("a: " + "9" * 5000, "Exceeds the limit"),
])  # fmt: skip
def test_yaml_that_would_exhaust_or_crash_its_reader_is_refused(tmp_path, text, message):
    (tmp_path / "evil.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_settings(tmp_path / "evil.yaml")


def test_aliases_may_be_used_in_measure(tmp_path):
    (tmp_path / "fine.yaml").write_text("data: &d {task: arithmetic}\n")
    assert load_settings(tmp_path / "fine.yaml").data.task == "arithmetic"


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(UserError, match="is compressed, which torch.save never does"):
        read_checkpoint(tmp_path / "bomb.pth")


def test_an_import_is_pinned_by_its_digest(tmp_path):
    (tmp_path / "best.pth").write_bytes(pickle.dumps({}))
    right = hashlib.sha256((tmp_path / "best.pth").read_bytes()).hexdigest()
    wanted = {"source": "nowhere", "generator": "nowhere"}
    with pytest.raises(UserError, match=f"has the SHA-256 {right}, not 00; fetch the file that was meant"):
        import_folder(tmp_path / "best.pth", tmp_path / "out", sha256="00", **wanted)
    with pytest.raises(UserError, match="holds no tensors|cannot be read"):
        import_folder(tmp_path / "best.pth", tmp_path / "out", sha256=right, **wanted)


def test_a_source_is_pinned_by_its_fingerprint(stored_source):
    right = load_source(ModelSettings(source=str(stored_source))).fingerprint
    for tables_only in (False, True):
        load_source(ModelSettings(source=str(stored_source), source_fingerprint=right), tables_only=tables_only)
        with pytest.raises(UserError, match=f"has the fingerprint {right}, and model.source_fingerprint asks for 00"):
            load_source(ModelSettings(source=str(stored_source), source_fingerprint="00"), tables_only=tables_only)
