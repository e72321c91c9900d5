"""The demo leaves what it promises; at full size, behind `slow`, it also reaches its bars."""

import json
import os

import pytest
import torch
import yaml

from llm_modules import demo
from llm_modules.settings import load_settings
from llm_modules.tasks import get_task

MODELS = ["source", "source-few-shot", "generator", "pair"]


def check_results(results):
    """What readers of results.json rely on."""
    assert {"minutes", "peak_memory_gb", "models", "paper_questions", "facts", "speed_vs_source"} <= set(results)
    assert [row["model"] for row in results["models"]] == MODELS
    for row in results["models"]:
        low, high = row["interval"]
        assert 0 <= low <= row["exact_match"] <= high <= 1
        assert {"n", "form", "tokens_per_s"} <= set(row)
    assert [row["model"] for row in results["reworded"]] == MODELS[2:]
    assert [row["model"] for row in results["facts"]] == MODELS
    for row in results["facts"]:
        assert set(row["exact_match"]) <= set(get_task("facts").kinds)
    assert len(results["paper_questions"]) == 2
    assert set(results["speed_vs_source"]) == {"prompt", "causal"}


@pytest.fixture
def tiny_recipes(tmp_path, monkeypatch):
    """The real recipes, cut down to two steps and a handful of problems."""
    for name in ("arithmetic", "facts"):
        settings = load_settings(demo.RECIPES / f"{name}.yaml").model_dump(mode="json", exclude_unset=True)
        settings["data"] |= {"num_examples": 12, "validation_fraction": 0.2}
        settings["training"].pop("num_epochs", None)
        settings["training"] |= {"max_steps": 2, "batch_size": 4, "eval_steps": 2, "save_steps": 2}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(demo, "RECIPES", tmp_path)
    monkeypatch.setattr(demo, "NUM_PROBLEMS", {"arithmetic": 7, "arithmetic-reworded": 7, "facts": 10})
    monkeypatch.setattr(demo, "NUM_ZEROED", 5)
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", {"arithmetic": 4, "facts": 4})
    monkeypatch.setattr(demo, "FEW_SHOT", {"arithmetic": 1, "facts": 1})
    monkeypatch.setattr(demo, "SPEED", {"new_tokens": 4, "repeats": 1})


def test_the_demo_leaves_models_pictures_report_and_results(tiny_recipes, default_source, tmp_path, capsys):
    output = tmp_path / "runs" / "demo"
    demo.run_demo(output)
    check_results(json.loads((output / "results.json").read_text()))
    for name in (
        "report.html",
        "report.md",
        "arithmetic-loss.png",
        "facts-accuracy.png",
        "arithmetic/model/config.json",
    ):
        assert (output / name).stat().st_size > 0, name
    assert "llm-modules chat" in capsys.readouterr().out

    demo._set_aside(output)  # a second run keeps the first
    assert not (output / "results.json").exists()
    assert len(list(output.parent.glob("demo-*/results.json"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_reaches_its_bars(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # other tests take one
    try:
        results = demo.run_demo(tmp_path / "demo")
    finally:
        torch.set_num_threads(threads)
    check_results(results)
    by_model = {row["model"]: row for row in results["models"]}
    assert results["minutes"] <= 25 and results["arithmetic_minutes"] <= 8 and results["peak_memory_gb"] < 6
    assert by_model["pair"]["exact_match"] >= 0.80 and by_model["pair"]["form"] >= 0.98
    assert all(question["correct"] for question in results["paper_questions"])
    assert results["speed_vs_source"]["prompt"] >= 4
    facts = {row["model"]: row["exact_match"] for row in results["facts"]}
    for kind, few_shot in facts["source-few-shot"].items():
        assert facts["pair"][kind] >= 0.8 * few_shot, kind
