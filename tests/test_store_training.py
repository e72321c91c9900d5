"""Training on a store: the same losses as from memory, and a plain word where the store does not fit."""

import pytest
import torch

from llm_modules import UserError
from llm_modules.extract import extract
from llm_modules.features import distinct_texts
from llm_modules.files import cache_folder
from llm_modules.settings import Settings
from llm_modules.store import plan
from llm_modules.store.extraction import Extraction
from llm_modules.store.key import Key
from llm_modules.store.reader import FeatureStore
from llm_modules.store.training import default_folder
from llm_modules.training import TrainingData, fit
from tests.test_training import TOKENIZER, data_of, dropping_pair, examples, losses_of, settings_of, weights_of

TAPS = [0, 2, -1]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", 8000)


def fitted(folder, model=None, data=None, **changes):
    model = model or dropping_pair(taps=TAPS, start="published")
    return fit(
        model,
        data or data_of(),
        settings_of(folder, **({"max_steps": 6, "precision": "float32"} | changes)),
        tokenizer=TOKENIZER,
    )


def all_losses(trainer):
    return [*losses_of(trainer).values(), *losses_of(trainer, "eval_loss").values()]


def fill(folder, model, data, dtype=None):
    texts = distinct_texts([*data.training, *data.validation], visibility=model.config.visibility)
    key = Key.of(model, TOKENIZER, dtype=dtype)
    assert Extraction(folder, source=model.source, key=key, texts=texts).run()
    return key


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_a_store_gives_the_losses_of_memory_and_of_reading_in_every_step(tmp_path, visibility):
    pair = lambda: dropping_pair(visibility=visibility, taps=TAPS, start="published")  # noqa: E731
    found = {
        features: all_losses(fitted(tmp_path / features, pair(), features=features))
        for features in ("memory", "online", "auto")
    }
    assert found["auto"] == pytest.approx(found["memory"], rel=1e-5)
    assert found["online"] == pytest.approx(found["memory"], rel=1e-4)


def test_auto_fills_the_store_of_the_cache_once_for_every_run(tmp_path, capsys):
    model = dropping_pair(seed=41, taps=TAPS)
    folder = default_folder(Key.of(model, TOKENIZER))
    assert folder.is_relative_to(cache_folder()) and not folder.exists()
    fitted(tmp_path / "first", model, features="auto")
    assert len(FeatureStore(folder)) == 14
    capsys.readouterr()
    fitted(tmp_path / "second", dropping_pair(seed=41, taps=TAPS), features="auto")
    assert "14 distinct texts, 0 of them not yet finished" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_named_store_is_used_in_whatever_dtype_it_has(tmp_path, dtype, capsys):
    model, data = dropping_pair(taps=TAPS), data_of()
    fill(tmp_path / "store", model, data, dtype=dtype)
    before = weights_of(model)
    fitted(tmp_path / "run", model, data, features=str(tmp_path / "store"))
    assert any(not torch.equal(before[name], weight) for name, weight in weights_of(model).items())
    assert f"knowledge from {tmp_path / 'store'}: 14 texts\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"dtype: the store has {dtype}, this run wants float16"):
        fitted(tmp_path / "other", features=str(tmp_path / "store"), features_dtype="float16")


def test_an_example_added_or_removed_since_is_told(tmp_path, capsys):
    model, data = dropping_pair(taps=TAPS), data_of()
    fill(tmp_path / "store", model, data)
    more = TrainingData([*data.training, *examples(3, seed=9)], data.validation)
    with pytest.raises(UserError, match=r"3 of 17 texts are not in the .* store .*extract CONFIG --out .*only these"):
        fitted(tmp_path / "more", data=more, features=str(tmp_path / "store"))
    fewer = TrainingData(data.training[2:], data.validation)
    fitted(tmp_path / "fewer", data=fewer, features=str(tmp_path / "store"))
    assert "12 texts, 2 others unused" in capsys.readouterr().out


def test_a_store_of_another_source_is_refused_before_training(tmp_path):
    data = data_of()
    fill(tmp_path / "store", dropping_pair(seed=1, taps=TAPS), data)
    with pytest.raises(UserError, match="source_fingerprint: the store has"):
        fitted(tmp_path / "run", dropping_pair(seed=2, taps=TAPS), data, features=str(tmp_path / "store"))


def test_a_shard_deleted_while_training_is_named_and_the_run_resumes(tmp_path, monkeypatch):
    data, store = data_of(), tmp_path / "store"
    fill(store, dropping_pair(taps=TAPS), data)
    whole = fitted(tmp_path / "whole", data=data, features=str(store), save_steps=2)
    read, calls = FeatureStore.knowledge, []

    def knowledge(self, texts):
        calls.append(len(texts))
        if len(calls) == 5:  # the fifth step
            for shard in store.glob("shard-*.safetensors"):
                shard.unlink()
        return read(self, texts)

    monkeypatch.setattr(FeatureStore, "knowledge", knowledge)
    with pytest.raises(UserError, match=r"shard-\w+.safetensors is missing; .*`llm-modules extract` again"):
        fitted(tmp_path / "run", data=data, features=str(store), save_steps=2)
    fill(store, dropping_pair(taps=TAPS), data)
    resumed = fitted(tmp_path / "run", data=data, features=str(store), save_steps=2, resume=True)
    assert resumed.state.global_step == whole.state.global_step == 6
    for (name, weight), other in zip(weights_of(whole.model).items(), weights_of(resumed.model).values(), strict=True):
        assert torch.equal(weight, other), name


def test_nothing_can_be_extracted_without_a_source(tmp_path):
    alone = {"source": None, "generator": "nowhere"}
    with pytest.raises(UserError, match="model.source is null, so nothing reads; name a source"):
        extract(Settings(model=alone, data={"task": "arithmetic"}), out=tmp_path, process=0, num_processes=1)
    with pytest.raises(ValueError, match="model.source is null, so nothing reads and training.features=auto"):
        Settings(model=alone, data={"task": "arithmetic"}, training={"features": "auto"})


def test_a_dtype_without_a_store_is_refused(tmp_path):
    with pytest.raises(UserError, match="features_dtype=int8 goes with a store, and training.features is memory"):
        fitted(tmp_path, features_dtype="int8")
