"""A sweep file comes to the points it says, each once, or is refused before anything is trained."""

import itertools
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llm_modules.errors import MissingFileError, UserError
from llm_modules.sweep_file import Point, Run, SweepFile, load_sweep, slug

BASE = {"data": {"task": "arithmetic"}}


@pytest.fixture
def sweep_file(tmp_path):
    def write(**fields):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"base": BASE} | fields))
        return path

    return write


def names(sweep):
    return [point.name for point in sweep.points]


def test_factors_change_one_thing_at_a_time(sweep_file):
    sweep = load_sweep(sweep_file(factors={"model.taps": [[0], [0, 8]], "model.visibility": ["prompt", "causal"]}))
    assert names(sweep) == ["base", "taps=[0]", "taps=[0, 8]", "visibility=causal"]
    assert sweep.same_as_base == ["visibility=prompt"]  # which is the default
    taps = [(run.settings.model.taps, run.settings.model.visibility) for run in sweep.runs]
    assert taps == [(None, "prompt"), ([0], "prompt"), ([0, 8], "prompt"), (None, "causal")]


def test_list_names_points_that_change_several_things(sweep_file):
    deep = {"name": "deep", "model.num_heads": 4, "model.generator.num_layers": 8}
    base = BASE | {"model": {"generator": {"model_type": "gpt_neo", "num_layers": 2}}}
    sweep = load_sweep(sweep_file(base=base, list=[deep, {"model.num_heads": 2}]))
    assert names(sweep) == ["base", "deep", "num_heads=2"]
    assert [run.settings.model.generator["num_layers"] for run in sweep.runs] == [2, 8, 2]
    assert [run.settings.model.num_heads for run in sweep.runs] == [8, 4, 2]


def test_grid_factors_and_list_add_up(sweep_file):
    sweep = load_sweep(
        sweep_file(
            grid={"model.num_heads": [2, 4], "model.d_adapter": [8, 16]},
            factors={"model.dropout": [0.2]},
            list=[{"model.head": "new"}],
        )
    )
    assert len(sweep.points) == 1 + 4 + 1 + 1


@given(
    st.dictionaries(
        st.sampled_from(["model.num_heads", "model.d_adapter", "training.batch_size", "data.num_examples"]),
        st.lists(st.integers(1, 10**6), min_size=1, max_size=3, unique=True),
        min_size=1,
    )
)
def test_a_grid_is_every_combination_once(tmp_path_factory, grid):
    path = tmp_path_factory.mktemp("grid") / "sweep.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, "grid": grid}))
    sweep = load_sweep(path)
    found = [tuple(sorted(point.changes.items())) for point in sweep.points if point.changes]
    expected = [tuple(sorted(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    assert len(set(found)) == len(found) and set(found) <= set(expected)
    assert len(found) + len(sweep.same_as_base) == len(expected)
    assert len(set(names(sweep))) == len(sweep.points)


@given(st.text())
def test_a_slug_is_a_file_name(text):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug(text)) and len(slug(text)) <= 60


@given(st.lists(st.tuples(st.text(max_size=4), st.integers(1, 4), st.integers(0, 3)), unique=True, max_size=8))
def test_names_of_files_tell_runs_apart(sweep_runs, drawn):
    runs = [sweep_runs(name, heads, seed) for name, heads, seed in drawn]
    told = {run.name("questions") for run in runs}
    assert len(told) >= len({(heads, seed) for _, heads, seed in drawn})
    assert told.isdisjoint({run.name("other questions") for run in runs})


@pytest.fixture(scope="module")
def sweep_runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "sweep.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, "seeds": [0, 1, 2, 3], "grid": {"model.num_heads": [1, 2, 3, 4]}}))
    settings = {(run.settings.model.num_heads, run.seed): run.settings for run in load_sweep(path).runs}
    return lambda name, heads, seed: Run(Point(name, {}), seed, settings[heads, seed])


def test_seeds_are_trained_one_after_the_other_over_all_points(sweep_file):
    sweep = load_sweep(sweep_file(seeds=[3, 5], factors={"model.num_heads": [2]}))
    assert [(run.point.name, run.seed) for run in sweep.runs] == [
        ("base", 3),
        ("num_heads=2", 3),
        ("base", 5),
        ("num_heads=2", 5),
    ]
    assert [run.settings.training.seed for run in sweep.runs] == [3, 3, 5, 5]


def test_runs_resume_and_read_from_the_store_unless_told_otherwise(sweep_file):
    base = BASE | {"training": {"output_dir": "elsewhere"}}
    (run, _) = load_sweep(sweep_file(base=base, factors={"model.num_heads": [2]})).runs
    assert run.settings.training.resume == "auto" and run.settings.training.features == "auto"
    (run, _) = load_sweep(sweep_file(set=["training.features=online"], factors={"model.num_heads": [2]})).runs
    assert run.settings.training.features == "online"


def test_set_and_the_command_line_are_for_every_point(sweep_file):
    path = sweep_file(set=["model.dropout=0.2"], factors={"model.num_heads": [2]}, evaluation={"num_problems": 9})
    sweep = load_sweep(path, ["data.num_examples=7", "evaluation.seed=5"])
    for run in sweep.runs:
        assert (run.settings.model.dropout, run.settings.data.num_examples) == (0.2, 7)
    assert (sweep.judging.task, sweep.judging.num_problems, sweep.judging.seed) == ("arithmetic", 9, 5)


def test_base_may_be_a_recipe(sweep_file, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": {"task": "tickets"}}))
    sweep = load_sweep(sweep_file(base=str(tmp_path / "recipe.yaml"), factors={"model.num_heads": [2]}))
    assert sweep.judging.task == "tickets"
    with pytest.raises(MissingFileError, match="nowhere.yaml is not there"):
        load_sweep(sweep_file(base="nowhere.yaml", factors={"model.num_heads": [2]}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "sweeps nothing; give it factors, grid or list"),
        ({"gird": {"model.taps": [[0]]}}, "unknown key gird; the nearest known key is grid"),
        ({"evaluation": {"task": "algebra"}}, "no built-in task is called 'algebra'"),
        ({"evaluation": {"num_problem": 3}}, "the nearest known key is evaluation.num_problems"),
        ({"factors": {"model.visibilty": ["causal"]}}, r"sweep\.yaml, point 'visibilty=causal': unknown key model.vis"),
        ({"factors": {"model.visibilty": ["causal"]}}, "the nearest known key is model.visibility"),
        ({"factors": {"model.visibility": ["sideways"]}}, "point 'visibility=sideways': model.visibility: Input"),
        ({"factors": {"taps": [[0]]}}, "'taps' is not section.key, such as model.taps"),
        ({"factors": {"model.taps": []}}, "factors.model.taps: List should have at least 1 item"),
        ({"factors": {"training.seed": [1, 2]}}, "training.seed cannot be set in a sweep, give `seeds`"),
        ({"set": ["training.output_dir=x"], "factors": {"model.taps": [[0]]}}, "training.output_dir cannot be set"),
        ({"seeds": [1, 1], "factors": {"model.taps": [[0]]}}, "names one twice"),
        ({"grid": {"model.num_heads": [2, 2]}}, "the points 'num_heads=2' and 'num_heads=2' are the same"),
        (
            {"factors": {"model.num_heads": [2]}, "list": [{"name": "few", "model.num_heads": 2}]},
            "the points 'num_heads=2' and 'few' are the same; leave one out",
        ),
        ({"list": [{"name": "idle", "model.num_heads": 8}]}, "the points 'base' and 'idle' are the same"),
        (
            {"list": [{"name": "a", "model.num_heads": 2}, {"name": "a", "model.num_heads": 4}]},
            "two different points are called 'a'",
        ),
        ({"base": {"data": {"train_file": "x.jsonl"}}, "factors": {"model.taps": [[0]]}}, "add evaluation.task"),
        ({"list": [{"model.source.name": "x"}], "base": BASE | {"model": {"source": "y"}}}, "is 'y', not a mapping"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_the_way_out(sweep_file, fields, message):
    with pytest.raises(UserError, match=message):
        load_sweep(sweep_file(**fields))


def test_every_key_of_the_file_is_explained():
    assert all(field.description for field in SweepFile.model_fields.values())
