"""Every sweep that ships can be read, and each of its models can be built."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_modules.cli import app
from llm_modules.default_source import built_in_source
from llm_modules.errors import UserError
from llm_modules.sweep import check_models
from llm_modules.sweep_file import load_sweep

SWEEPS = sorted((Path(__file__).parent.parent / "sweeps").glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(SWEEPS[0].parent.parent)


def test_the_study_covers_its_tasks():
    tasks = {load_sweep(path).judging.task for path in SWEEPS if path.stem.startswith("evidence-")}
    gym = {"reasoning-gym:family_relationships", "reasoning-gym:word_sequence_reversal"}
    assert tasks == {"arithmetic", "facts", "tickets", "math-word-problems"} | gym


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_is_explained_and_fits_the_default_source(path, own_cache):
    assert path.read_text().startswith("# ") and f"llm-modules sweep sweeps/{path.name}" in path.read_text()
    try:
        built_in_source("default")
    except UserError as error:
        pytest.skip(str(error))
    check_models(load_sweep(path))


def test_the_example_says_what_it_would_train(own_cache, tmp_path):
    try:
        built_in_source("default")
    except UserError as error:
        pytest.skip(str(error))
    result = CliRunner().invoke(
        app, ["sweep", "sweeps/arithmetic-quick.yaml", "--dry-run", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "3 points, 1 seeds: 3 runs" in result.stdout and "  base (also taps=[0, 8]): -\n" in result.stdout
    assert not (tmp_path / "out").exists()
