"""The doctor names everything that lies there, what is broken, and what to do; and changes nothing."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from benchmarks.tiny_world import make_world, write_recipe
from llm_modules.checksums import SUMS, write_json
from llm_modules.cli import app
from llm_modules.doctor import examine
from llm_modules.folders import alone_in
from tests.conftest import tiny_pair


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run that has ended and a store, in one folder."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    recipe = write_recipe(folder / "recipe.yaml", folder, training={"max_steps": 6})
    run, store = folder / "all" / "run", folder / "all" / "store"
    for verb, *rest in (["train", f"training.output_dir={run}"], ["extract", "--out", str(store)]):
        done = CliRunner().invoke(app, [verb, str(recipe), *rest])
        assert done.exit_code == 0, done.output
    return folder / "all"


@pytest.fixture
def copy(world, tmp_path):
    shutil.copytree(world, tmp_path / "all")
    return tmp_path / "all"


def call(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)], env={"COLUMNS": "200"})


def states(folder):
    return {finding.path.removeprefix(f"{folder}/"): finding.state for finding in examine(folder)}


def test_everything_that_is_there_is_named_and_whole(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert states(copy) == dict.fromkeys(
        [
            "run", "run/checkpoints/checkpoint-3", "run/checkpoints/checkpoint-6", "run/examples.json", "run/loss.png",
            "run/model", "run/settings.yaml", "store",
        ], "whole",
    )  # fmt: skip
    done = call(copy)
    assert done.exit_code == 0 and "8 things: 8 whole, 0 unfinished, 0 broken" in done.stdout
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_broken_things_are_told_with_what_to_do_and_the_exit_code_says_so(copy):
    checkpoint, shard = copy / "run" / "checkpoints" / "checkpoint-6", min((copy / "store").glob("shard-*.safetensors"))
    for file in (checkpoint / "optimizer.pt", shard, copy / "run" / "model" / "tokenizer.json"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    (copy / "run" / "loss.png").write_bytes((copy / "run" / "loss.png").read_bytes()[:-9])
    done = call(copy, "--json")
    assert done.exit_code == 1
    told = {one["path"].removeprefix(f"{copy}/"): one for one in json.loads(done.stdout)}
    assert {path for path, one in told.items() if one["state"] == "broken"} == {
        "run/checkpoints/checkpoint-6", "run/model", "run/loss.png", "store",
    }  # fmt: skip
    assert told["run/checkpoints/checkpoint-6"]["do"] == f"rm -r {checkpoint} and run the same command again"
    assert "saved again from the last checkpoint" in told["run/model"]["do"]
    assert "run `llm-modules extract` again: only it is read anew" in told["store"]["says"]


def test_run_that_was_killed_says_what_it_goes_on_from(copy):
    shutil.rmtree(copy / "run" / "model")
    (copy / "run" / "checkpoints" / ".checkpoint-9.tmp").mkdir()
    found = {finding.what: finding for finding in examine(copy / "run")}
    assert found["run"].state == found["half written"].state == "unfinished"
    assert found["run"].do == "run the same command again; it goes on from checkpoint-6"
    assert call(copy / "run").exit_code == 0
    shutil.rmtree(copy / "run" / "checkpoints")
    assert examine(copy / "run")[0].do == "run the same command again; it begins anew"
    with alone_in(copy / "run", what="training"):
        assert examine(copy / "run")[0].says == "is running now"


def test_model_without_checksums_is_held_to_its_fingerprint(copy):
    model = copy / "run" / "model"
    (model / SUMS).unlink()
    assert examine(model)[0].says == "readable; it has no SHA256SUMS to compare with"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_heads": 1}))
    assert examine(model)[0].state == "broken"


def test_model_whose_source_is_not_there_is_told(copy, tmp_path):
    model = copy / "run" / "model"
    (model / SUMS).unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"source_id": str(tmp_path / "gone")}))
    (finding,) = examine(model)
    assert finding.state == "unfinished" and "gone is not there" in finding.says
    tiny_pair().save_pretrained(tmp_path / "never")
    assert "its source was never stored" in examine(tmp_path / "never")[0].says


def test_figures_of_a_sweep_are_looked_at(tmp_path):
    write_json(tmp_path / "runs" / "a.json", {"point": "a", "correct": [1]})
    write_json(tmp_path / "runs" / "b.json", {"point": "b", "failed": "out of memory"})
    assert states(tmp_path) == {"runs/a.json": "whole", "runs/b.json": "unfinished"}
    (tmp_path / "runs" / "a.json").write_text((tmp_path / "runs" / "a.json").read_text().replace("1", "0", 1))
    assert states(tmp_path)["runs/a.json"] == "broken"


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    for place, message in ((tmp_path, "holds nothing that llm-modules wrote"), (tmp_path / "nowhere", "is not there")):
        done = call(place)
        assert done.exit_code == 2 and message in done.stderr
