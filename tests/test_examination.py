"""`llm-modules evaluate` on files: figures, warnings, and what is refused before a model is loaded."""

import csv
import json

import pytest
import yaml
from typer.testing import CliRunner

from llm_modules.cli import app
from llm_modules.evaluation import explain_nothing_right, judge
from llm_modules.few_shot import few_shot
from llm_modules.source import Source
from llm_modules.tasks import get_task
from llm_modules.writing import Writing
from tests.conftest import tiny_source_config

COLUMNS = ["Question", "Numbers", "Equation", "Answer"]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_problems(path, numbers):
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(COLUMNS)
        writer.writerows(
            [f"{' '.join(str(number))} : a has number0 , b has number1 ?", "3.0 200.0", "+ number0 number1", 203]
            for number in numbers
        )
    return path


@pytest.fixture
def trained(talking_source, tmp_path):
    """Folder of a pair that was trained for a step on a file of word problems."""
    recipe = {
        "model": {
            "source": str(talking_source),
            "generator": tiny_source_config(hidden_size=12, num_hidden_layers=1, bos_token_id=None).to_diff_dict()
            | {"model_type": "llama"},
            "num_heads": 2,
            "d_adapter": 10,
        },
        "data": {"task": "math-word-problems", "train_file": str(write_problems(tmp_path / "train.csv", range(20)))},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "batch_size": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = call("train", tmp_path / "recipe.yaml")
    assert result.exit_code == 0, result.output
    return tmp_path / "run" / "model"


@pytest.mark.filterwarnings("ignore:none of 7 answers is right")
def test_every_problem_of_a_file_is_asked_and_the_figures_are_written(trained, tmp_path):
    data, out = write_problems(tmp_path / "dev.csv", range(30, 37)), tmp_path / "out.json"
    result = call(
        "evaluate", trained, "--task", "math-word-problems", "--data", data, "--max-new-tokens", 3, "--json", out
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert figures["n"] == 7 and figures["exact_match"] == 0.0
    assert figures["task"] == "math-word-problems" and figures["data"] == str(data)
    assert "one step" in result.stdout and "0/7" in result.stdout


def test_problems_that_were_trained_on_are_refused(trained, tmp_path):
    data = write_problems(tmp_path / "dev.csv", range(10, 40))
    result = call("evaluate", trained, "--task", "math-word-problems", "--data", data)
    assert result.exit_code == 2 and "was trained on" in result.stderr and "shares none with training" in result.stderr


def test_validation_file_that_shares_an_example_is_refused(trained, tmp_path):
    write_problems(tmp_path / "validation.csv", [50, 7])
    result = call(
        "train",
        tmp_path / "recipe.yaml",
        f"data.validation_file={tmp_path / 'validation.csv'}",
        f"training.output_dir={tmp_path / 'other'}",
    )
    assert result.exit_code == 2
    assert "1 of 2 validation examples are training examples too (the first is number 2)" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "gsm8k"), "give it as --data FILE"),
        (("--task", "gsm8k", "--data", "nowhere.jsonl"), "nowhere.jsonl is not there"),
        (("--task", "tickets", "--verifier", "exact"), "'tickets' has its own verifier"),
        (("--task", "jsonl", "--data", "nowhere.jsonl"), "needs a verifier"),
    ],
)
def test_what_cannot_be_asked_is_told_before_a_model_is_looked_for(tmp_path, options, message):
    pytest.importorskip("math_verify")
    result = call("evaluate", tmp_path, *options)
    assert result.exit_code == 2 and message in result.stderr


def verdicts_on(task, texts):
    return judge(task, task.test(seed=0), Writing(texts, num_tokens=1, seconds=1.0))


def test_a_verifier_that_never_matches_is_told_from_a_model_that_is_never_right(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"question": "a", "answer": "^4$", "response": "four"}\n{"question": "b", "answer": "5"}\n')
    task = get_task("jsonl", data=path, verifier="regex")
    assert explain_nothing_right(task, verdicts_on(task, ["x", "5"])) is None
    model = explain_nothing_right(task, verdicts_on(task, ["x", "y"]))
    assert model == (
        "none of 2 answers is right, while reference answers are accepted; the first answer should be '^4$' and was 'x'"
    )
    path.write_text('{"question": "a", "answer": "^4$", "response": "four"}\n')
    task = get_task("jsonl", data=path, verifier="regex")
    assert "it never matches; correct the answers or choose another verifier" in explain_nothing_right(
        task, verdicts_on(task, ["four"])
    )


@pytest.mark.filterwarnings("ignore:none of 2 answers is right")
def test_the_source_alone_is_judged_beside_a_pair_where_the_task_wants_it(trained, monkeypatch):
    monkeypatch.setattr("llm_modules.tasks.tickets.Tickets.num_shots", 1)
    result = call("evaluate", trained, "--task", "tickets", "--num-problems", 2, "--max-new-tokens", 2)
    assert result.exit_code == 0, result.output
    ours, _, beside = result.stdout.partition("\nthe source alone, 1 examples in its context\n")
    assert "F1 of fields" in ours and "0/2" in ours and "0/2" in beside


def test_few_shot_asks_every_problem_once(talking_source):
    task, source = get_task("arithmetic"), Source.load(str(talking_source))
    problems = task.test(9, seed=0)
    found = few_shot(source, task, problems, num_examples=1, seed=0, max_new_tokens=2)
    assert found.exact.n == 9 and list(found.problems) == problems
