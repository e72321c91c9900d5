"""Modules share one source; each has a short name of its own."""

from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from llm_modules import UserError
from llm_modules.chat import Conversation, Sampling
from llm_modules.speakers import SOURCE, load_speakers, short_names
from tests.conftest import (
    endless_generator_config,
    tiny_generator_config,
    tiny_pair,
    tiny_source_config,
    tiny_tokenizer,
)


@pytest.fixture(scope="module")
def folders(endless_source, tmp_path_factory):
    """A pair of each shape on one source, and a generator alone."""
    base = tmp_path_factory.mktemp("runs")
    for name, generator in (("one", endless_generator_config()), ("two", tiny_generator_config())):
        tiny_pair(source=str(endless_source), generator=generator).save_pretrained(base / name / "model")
    alone = AutoModelForCausalLM.from_config(tiny_source_config(hidden_size=12))
    alone.save_pretrained(base / "alone" / "model")
    tiny_tokenizer().save_pretrained(base / "alone" / "model")
    return [base / name / "model" for name in ("alone", "one", "two")]


def test_pairs_share_one_source_which_speaks_itself(folders):
    told = []
    found = load_speakers(folders, echo=told.append)
    assert list(found) == ["alone", "one", "two", SOURCE]
    assert found["one"].model.source is found["two"].model.source
    assert found[SOURCE].model is found["one"].model.source.model
    assert told == [f"loading {folder}" for folder in folders]
    for speaker in found.values():
        assert list(Conversation(speaker.model, speaker.tokenizer, Sampling(3)).ask("1"))


def test_generator_alone_has_no_source_beside_it(folders):
    assert list(load_speakers(folders[:1], echo=str)) == ["alone"]


def test_pair_on_another_source_is_refused_by_name(folders, tmp_path):
    torch.manual_seed(7)
    other = tmp_path / "other"
    AutoModelForCausalLM.from_config(tiny_source_config()).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    tiny_pair(source=str(other)).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=rf"^{tmp_path}/model: this model was trained with the source {other}"):
        load_speakers([folders[1], tmp_path / "model"], echo=str)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/facts/model"], ["facts"]),
        (["runs/facts/model", "runs/sums/model"], ["facts", "sums"]),
        (["a/facts/model", "b/facts/model", "c/sums"], ["a/facts", "b/facts", "sums"]),
        (["runs/source/model"], ["runs/source"]),
        (["runs/facts", "runs/facts/model"], ["runs/facts", "runs/facts/model"]),
    ],
)
def test_names_are_the_shortest_ends_that_tell_apart(paths, names):
    assert short_names([Path(path) for path in paths]) == names


parts = st.sampled_from(["a", "b", "model", SOURCE])


@given(st.lists(st.lists(parts, min_size=1, max_size=4).map("/".join), min_size=1, max_size=5, unique=True))
@example(["source", "source/model"])
@example(["a", "a/model", "b/a/model/model", "model/model"])
def test_names_never_clash(paths):
    names = short_names([Path(path) for path in paths])
    assert len({*names, SOURCE}) == len(paths) + 1


def test_folder_given_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="is given twice; give each model once"):
        short_names([tmp_path, tmp_path / "."])
