"""A disk that is full or refuses, a byte that flips: a clear error, nothing finished lost, never a wrong result."""

import json
import random
import shutil
from contextlib import suppress

import pytest
import torch
from matplotlib import pyplot as plt
from transformers import AutoModelForCausalLM

from benchmarks.tiny_world import make_world, write_recipe
from llm_modules import CombinedModel, UserError
from llm_modules.baselines import GeneratorAlone
from llm_modules.checksums import SUMS, faults, read_json, write_json
from llm_modules.doctor import examine
from llm_modules.errors import UnwritableError
from llm_modules.files import half_written, write_text
from llm_modules.fingerprint import fingerprint_folder
from llm_modules.loading import load_causal_lm
from llm_modules.plots import save_figure
from llm_modules.run_folder import last_checkpoint
from llm_modules.settings import load_settings
from llm_modules.source import Source
from llm_modules.store.reader import FeatureStore
from llm_modules.store.shards import write_shard
from llm_modules.training import train
from tests.conftest import tiny_generator_config, tiny_pair, tiny_tokenizer
from tests.disks import fill, remount, small_disk


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


def settings_of(world, output, **training):
    recipe = write_recipe(
        world / "changed.yaml", world, training={"max_steps": 9, "output_dir": str(output)} | training
    )
    return load_settings(recipe)


@pytest.fixture(scope="module")
def trained(world):
    """A run that has ended."""
    train(settings_of(world, world / "run"))
    return world / "run"


def weights(folder):
    return {name: weight.detach() for name, weight in CombinedModel.from_pretrained(folder).named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- a full disk -------------------------------------------------------------------------------------------------------


def test_disk_that_fills_up_in_training_keeps_the_last_checkpoint_and_the_run_goes_on(world, trained, tmp_path):
    with small_disk(tmp_path / "disk", "450k") as disk:
        settings = settings_of(world, disk / "run", save_total_limit=9)
        with pytest.raises(UserError, match=r"the disk of .* is full; what is finished is kept: make room and run the"):
            train(settings)
        last = last_checkpoint(disk / "run" / "checkpoints")
        assert last is not None and faults(last) == []
        assert half_written(disk / "run" / "checkpoints") == []
        assert not any(finding.state == "broken" for finding in examine(disk / "run"))
        remount(disk, "size=8m")
        train(settings)
        assert same(weights(disk / "run" / "model"), weights(trained / "model"))


def small_figure():
    figure = plt.figure(figsize=(5, 4))
    figure.add_subplot().plot(range(3))
    return figure


@pytest.fixture(scope="module")
def writers(trained):
    """Everything that is written, by a name."""
    pair = CombinedModel.from_pretrained(trained / "model")
    alone = GeneratorAlone(AutoModelForCausalLM.from_config(tiny_generator_config(vocab_size=67)))
    states = [((3, 4), torch.zeros(900, 1, 24))]
    return {
        "report": lambda folder: write_text(folder / "report.html", "long " * 20_000),
        "figures": lambda folder: write_json(folder / "table.json", {"rows": ["long"] * 20_000}),
        "picture": lambda folder: save_figure(small_figure(), folder / "loss.png"),
        "pair": lambda folder: pair.save_pretrained(folder / "model"),
        "pair in shards": lambda folder: pair.save_pretrained(folder / "model", max_shard_size="8KB"),
        "generator": lambda folder: alone.save_pretrained(folder / "model"),
        "shard": lambda folder: write_shard(folder / "shard-0.safetensors", states, dtype="float32"),
    }


WRITERS = ["report", "figures", "picture", "pair", "pair in shards", "generator", "shard"]


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_is_told_and_leaves_what_was_there(name, writers, tmp_path):
    with small_disk(tmp_path / "disk", "600k") as disk:
        for leave in (0, 4096, 12_288):
            fill(disk, leave=leave)
            with pytest.raises(UnwritableError, match="the disk of .* is full; what is finished is kept"):
                writers[name](disk)
            assert [path.name for path in disk.rglob("*")] == ["filler"]
            (disk / "filler").unlink()
        writers[name](disk)
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        fill(disk, leave=4096)
        with pytest.raises(UnwritableError, match="is full"):
            writers[name](disk)
        assert {path: path.read_bytes() for path in before} == before
        assert {path for path in disk.rglob("*") if path.is_file()} == {*before, disk / "filler"}


# -- a disk that refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_read_only_disk_is_told(name, writers, tmp_path):
    with small_disk(tmp_path / "disk", "600k") as disk:
        remount(disk, "ro")
        with pytest.raises(UserError, match="cannot be written .Read-only file system"):
            writers[name](disk)


def test_run_into_a_read_only_folder_is_refused_before_anything_is_computed(world, tmp_path):
    with small_disk(tmp_path / "disk", "600k") as disk:
        remount(disk, "ro")
        with pytest.raises(UserError, match="cannot be written .Read-only file system"):
            train(settings_of(world, disk / "run"))


def test_finished_run_on_a_disk_that_became_read_only_can_still_be_used(world, trained, tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        shutil.copytree(trained, disk / "run")
        remount(disk, "ro")
        assert same(weights(disk / "run" / "model"), weights(trained / "model"))
        assert all(finding.state == "whole" for finding in examine(disk / "run"))
        with pytest.raises(UserError, match="cannot be written .Read-only file system"):
            train(settings_of(world, disk / "run"))


# -- a flipped byte ----------------------------------------------------------------------------------------------------


def flips(file, number, draw=None):
    """A file with one bit flipped, in so many places; whole again at the end."""
    right, draw = file.read_bytes(), draw or random.Random(file.name)
    for place in {0, len(right) - 1, *(draw.randrange(len(right)) for _ in range(number))}:
        wrong = bytearray(right)
        wrong[place] ^= 1 << draw.randrange(8)
        file.write_bytes(wrong)
        yield place
    file.write_bytes(right)


def test_flipped_bit_in_any_file_of_a_model_is_refused(trained):
    source = CombinedModel.from_pretrained(trained / "model").source
    files = sorted(file for file in (trained / "model").iterdir() if file.name != "README.md")
    assert {"config.json", "model.safetensors", "tokenizer.json", "trained_on.txt", SUMS} <= {
        file.name for file in files
    }
    for file in files:
        for _ in flips(file, 20):
            with pytest.raises(UserError):
                CombinedModel.from_pretrained(trained / "model", source=source)
            assert [finding.state for finding in examine(trained / "model")] == ["broken"]
    CombinedModel.from_pretrained(trained / "model", source=source)


def test_flipped_bit_in_any_file_of_a_checkpoint_stops_the_run_and_the_one_before_goes_on(world, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "model")
    settings = settings_of(world, run)
    last = last_checkpoint(run / "checkpoints")
    for file in sorted(file for file in last.iterdir() if file.name != "README.md"):
        for _ in flips(file, 0):
            with pytest.raises(
                UserError, match="remove this checkpoint and run the same again; the run then goes on from"
            ):
                train(settings)
            break
        found = {finding.path: finding for finding in examine(run)}
    shutil.rmtree(last)
    train(settings)
    assert found[str(last)].do == f"rm -r {last} and run the same command again"
    assert same(weights(run / "model"), weights(trained / "model"))


def test_flipped_bit_in_a_language_model_is_refused(world, tmp_path):
    alone = GeneratorAlone(AutoModelForCausalLM.from_config(tiny_generator_config(vocab_size=67)))
    alone.tokenizer = tiny_tokenizer()
    alone.save_pretrained(tmp_path / "alone")
    load_causal_lm(tmp_path / "alone")
    for file in sorted((tmp_path / "alone").iterdir()):
        for _ in flips(file, 5):
            for load in (load_causal_lm, Source.load):
                with pytest.raises(UserError):
                    load(tmp_path / "alone")


def test_flipped_bit_in_figures_is_refused(tmp_path):
    file = tmp_path / "run.json"
    fields = {"point": "taps=[-1]", "correct": [1, 0, 1], "loss": 1.25, "é": None}
    write_json(file, fields)
    assert read_json(file) == fields
    for _ in flips(file, 300):
        found = fields
        with suppress(UserError):  # or a flip in the word sha256, or in what means the same
            found = read_json(file)
        assert {name: found[name] for name in fields} == fields
    file.write_bytes(file.read_bytes().replace(b"1.25", b"1.26"))
    with pytest.raises(
        UserError, match=r"is damaged .its SHA-256 is another than it says.; remove it and run the same"
    ):
        read_json(file)


def test_flipped_bit_in_the_settings_of_a_run_changes_nothing_of_it(world, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    settings = settings_of(world, tmp_path / "run")
    model = weights(trained / "model")
    for _ in flips(tmp_path / "run" / "settings.yaml", 3):
        with suppress(UserError):
            train(settings)
        assert same(weights(tmp_path / "run" / "model"), model)


def test_flipped_bit_in_a_fingerprint_that_is_kept_is_noticed(stored_source, own_cache):
    right = fingerprint_folder(stored_source)
    newest = max((own_cache / "fingerprints").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for _ in flips(newest, 10):
        assert fingerprint_folder(stored_source) == right


def test_manifest_that_names_a_path_outside_is_refused_and_nothing_outside_is_touched(tmp_path):
    (tmp_path / "precious.safetensors").write_text("mine")
    entry = {"num_texts": 1, "num_tokens": 1, "num_bytes": 4, "header_checksum": 0, "index_checksum": 0}
    key = {
        "source_fingerprint": "", "source_dtype": "float32", "taps": [-1], "dtype": "float32", "tokenizer": "",
        "template": "", "reads": "prompt",
    }  # fmt: skip
    store = tmp_path / "store"
    store.mkdir()
    for name in ("../precious.safetensors", str(tmp_path / "precious.safetensors"), "shard-0.safetensors/../../x"):
        whole = {"format": 1, "source": None, "key": key, "shards": [entry | {"name": name}]}
        (store / "manifest.json").write_text(json.dumps(whole))
        with pytest.raises(UserError, match="manifest.json is damaged"):
            FeatureStore(store)
    assert (tmp_path / "precious.safetensors").read_text() == "mine"


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "a\\b"])
def test_checksums_of_what_lies_outside_are_refused(name, trained, tmp_path):
    shutil.copytree(trained / "model", tmp_path / "model")
    with (tmp_path / "model" / SUMS).open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(UserError, match="is no SHA-256 with the name of a file in this folder"):
        CombinedModel.from_pretrained(tmp_path / "model")


def test_pair_saved_over_a_link_replaces_what_it_points_to(tmp_path):
    model = tiny_pair()
    model.save_pretrained(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    model.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and faults(tmp_path / "real") == []
