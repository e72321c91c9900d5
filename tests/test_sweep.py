"""A sweep ends with the same table however often it was stopped, and what fails takes nothing else along."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from llm_modules.bootstrap import bootstrap
from llm_modules.cli import app
from llm_modules.evaluation import Score
from llm_modules.sweep import check_models
from llm_modules.sweep_file import load_sweep
from llm_modules.sweep_report import rows, sentences, summary, table
from tests.conftest import tiny_source_config, tiny_tokenizer

TIMES = ("train_s", "resumed", "tokens_per_s", "peak_memory_gb")


def call(*arguments):
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder of a tiny stored source that talks."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("source")
    AutoModelForCausalLM.from_config(tiny_source_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def write_sweep(source, tmp_path_factory):
    """Writes a sweep on a file of seven sums, to be judged on seven others."""
    folder = tmp_path_factory.mktemp("data")
    for name, first in (("train", 0), ("test", 3)):
        lines = [{"question": f"{first} + {second} ?", "answer": str(first + second)} for second in range(7)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    told = [{"prompt": record["question"], "completion": record["answer"]} for record in records]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))

    def write(path, *, training=None, **fields):
        base = {
            "model": {
                "source": str(source),
                "generator": {
                    "model_type": "llama",
                    "hidden_size": 12,
                    "intermediate_size": 20,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "max_position_embeddings": 64,
                },
                "num_heads": 2,
                "d_adapter": 10,
                "num_bridge_layers": 1,
            },
            "data": {"train_file": str(folder / "train.jsonl"), "validation_fraction": 0.3, "max_length": 40},
            "training": {"max_steps": 4, "batch_size": 2, "save_steps": 1, "eval_steps": 2} | (training or {}),
        }
        evaluation = {"task": "jsonl", "data": str(folder / "test.jsonl"), "verifier": "exact", "max_new_tokens": 3}
        whole = {"base": base, "evaluation": evaluation, "factors": {"model.num_heads": [1, 2]}} | fields
        path.write_text(yaml.safe_dump(whole, sort_keys=False))
        return path

    return write


def wait_for(folder, pattern, seconds=300):
    """Until a file of this name is there."""
    deadline = time.monotonic() + seconds
    while not [*folder.glob(pattern)]:
        assert time.monotonic() < deadline, pattern
        time.sleep(0.02)


def lasting(folder):
    """The table, but for what a clock said."""
    told = json.loads((folder / "table.json").read_text())
    return [{key: value for key, value in row.items() if key not in TIMES} for row in told["points"]], told["failed"]


def test_sweep_killed_half_way_goes_on_to_the_same_table(write_sweep, tmp_path):
    sweep = write_sweep(tmp_path / "sweep.yaml", seeds=[0, 1], training={"max_steps": 16})
    whole = call(sweep, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    assert "2 points, 2 seeds: 4 runs" in whole.stdout and "run 4 of 4: num_heads=1, seed 1; about" in whole.stdout

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "llm_modules.cli", "sweep", str(sweep), "--out", str(killed)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(killed, "runs/num-heads-1-*/checkpoints/checkpoint-*")  # of the second run
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(below, timeout=60)
    assert not [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert len([*killed.glob("runs/*.json")]) == 1

    again = call(sweep, "--out", killed)
    assert again.exit_code == 0, again.output
    assert "1 finished, 3 to do: about" in again.stdout
    assert "run 2 of 4: num_heads=1, seed 0, resumed; about" in again.stdout and "run 1 of" not in again.stdout
    assert lasting(killed) == lasting(tmp_path / "whole")
    assert not [*killed.glob("runs/*/model"), *killed.glob("runs/*/checkpoints")]
    assert len([*killed.glob("runs/*/loss.png")]) == 4

    page = (killed / "sweep.html").read_text()
    assert "data:image/png;base64," in page and "<script" not in page and "num_heads=1" in page
    assert re.search(r"^\| num\\_heads=1 \|", (killed / "table.md").read_text(), re.MULTILINE)
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*.json")}
    (killed / "runs" / "other.json").write_text('{"failed": "of another time"}')  # binds nobody
    last = call(sweep, "--out", killed)
    assert last.exit_code == 0 and "4 finished, 0 to do" in last.stdout and "run " not in last.stdout.split("to do")[1]
    assert finished == {path: path.stat().st_mtime_ns for path in finished}


def test_points_and_seeds_add_to_a_sweep_and_other_ones_are_refused(write_sweep, tmp_path):
    out, sweep = tmp_path / "out", tmp_path / "sweep.yaml"
    first = call(write_sweep(sweep, keep_models=True, list=[{"name": "bad", "data.max_length": 2}]), "--out", out)
    assert first.exit_code == 1, first.output  # one run failed, the others did not
    (failed,) = lasting(out)[1]
    assert failed["point"] == "bad" and "no trainable token" in failed["failed"]
    assert "Failed: bad, seed 0" in first.stdout and "run 3 of 3: bad" in first.stdout
    assert len([*out.glob("runs/*/model/config.json")]) == 2

    dry = call(write_sweep(sweep, factors={"model.num_heads": [1, 3, 4]}), "--out", out, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "  base: -\n  num_heads=1: model.num_heads=1\n" in dry.stdout and "2 finished, 2 to do: about" in dry.stdout

    for changed in ({"factors": {"model.num_heads": [4]}}, {"set": ["training.max_steps=5"]}):
        refused = call(write_sweep(sweep, **changed), "--out", out, "--dry-run")
        assert refused.exit_code == 2 and "choose another --out" in refused.stderr, refused.output
        assert "seed 0" in refused.stderr

    (file, *_) = out.glob("runs/base-*.json")
    kept = json.loads(file.read_text())
    del kept["sha256"]
    kept["settings"]["training"]["weight_decay"] = 0.5  # as if the default had been another one then
    file.write_text(json.dumps(kept))
    stale = call(write_sweep(sweep), "--out", out, "--dry-run")
    assert stale.exit_code == 2 and "with training.weight_decay=0.5, and its default is 0.01 now" in stale.stderr


def test_two_runs_at_once_find_what_one_after_the_other_does(write_sweep, tmp_path):
    sweep = write_sweep(tmp_path / "sweep.yaml", list=[{"name": "bad", "data.max_length": 2}])
    alone = call(sweep, "--out", tmp_path / "alone")
    beside = call(sweep, "--out", tmp_path / "beside", "--jobs", "2")
    assert alone.exit_code == beside.exit_code == 1, beside.output  # the bad one fails, here as there
    assert "2 runs at once" in beside.stdout and "run 3 of 3: bad, seed 0" in beside.stdout
    assert "ended: num_heads=1, seed 0, " in beside.stdout
    points, failed = lasting(tmp_path / "beside")
    wanted, _ = lasting(tmp_path / "alone")
    losses = [[row.pop("validation_loss_nats") for row in rows] for rows in (points, wanted)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # fewer threads add in another order
    assert points == wanted and len(failed) == 1
    assert "jsonl        0.0%" in next(tmp_path.glob("beside/runs/num-heads-1-*.log")).read_text()


def test_a_run_that_takes_too_long_is_stopped_and_written_down(write_sweep, tmp_path):
    sweep = write_sweep(tmp_path / "slow.yaml", training={"max_steps": 10**6}, max_run_s=0.2)
    result = call(sweep, "--out", tmp_path / "slow")
    assert result.exit_code == 1, result.output
    assert [one["failed"] for one in lasting(tmp_path / "slow")[1]] == [
        "took longer than max_run_s=0.2; the same command goes on with it"
    ] * 2


def test_a_run_that_the_system_kills_is_written_down_and_the_others_go_on(write_sweep, tmp_path):
    """For want of memory, most often."""
    sweep = write_sweep(tmp_path / "sweep.yaml", list=[{"name": "endless", "training.max_steps": 10**6}])

    def kill_endless():
        wait_for(tmp_path, "out/runs/endless-*/checkpoints/checkpoint-*")
        max(psutil.Process().children(recursive=True), key=lambda child: child.create_time()).kill()

    killer = threading.Thread(target=kill_endless)
    killer.start()
    result = call(sweep, "--out", tmp_path / "out")
    killer.join()
    assert result.exit_code == 1, result.output
    points, (failed,) = lasting(tmp_path / "out")
    assert [point["point"] for point in points] == ["base", "num_heads=1"] and failed["point"] == "endless"
    assert failed["failed"].startswith("its process ended with code -9 and no word, killed by the system")


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(write_sweep, tmp_path):
    sweep = write_sweep(tmp_path / "sweep.yaml", training={"max_steps": 10**6, "save_steps": 10**6})
    command = [sys.executable, "-m", "llm_modules.cli", "sweep", str(sweep), "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert any("'loss'" in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"to go on: llm-modules sweep {sweep} --out {tmp_path / 'out'}" in said and "Traceback" not in errors
    assert [*tmp_path.glob("out/runs/base-*/checkpoints/checkpoint-*")] and not [*tmp_path.glob("out/runs/*.json")]


def test_ways_to_hold_the_source_are_different_points(write_sweep, tmp_path):
    ways = {"model.source_quantization": ["8bit", "4bit"], "model.source_dtype": ["bfloat16"]}
    found = load_sweep(write_sweep(tmp_path / "sweep.yaml", factors=ways))
    check_models(found)
    assert len(found.points) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factors": {"model.num_heads": [1, 5]}}, "point 'num_heads=5': d_generator=12 is not divisible by"),
        ({"factors": {"model.taps": [[9]]}}, "point 'taps=[9]': "),
        (
            {"factors": {"model.taps": [[-1]]}},
            "point 'taps=[-1]' comes to the same as 'base', once defaults are filled in",
        ),
        (
            {"factors": {"model.generator.num_layers": [3]}},
            "unknown key model.generator.num_layers; the nearest known key is model.generator.num_hidden_layers",
        ),
        ({"evaluation": {"task": "jsonl", "data": "nowhere.jsonl", "verifier": "exact"}}, "nowhere.jsonl is not there"),
        ({"evaluation": {"task": "gsm8k"}}, "give it as --data FILE"),
    ],
)
def test_what_no_point_can_do_is_told_before_the_first_trains(write_sweep, tmp_path, fields, message):
    if "gsm8k" in str(fields):
        pytest.importorskip("math_verify")
    result = call(write_sweep(tmp_path / "sweep.yaml", **fields), "--out", tmp_path / "out")
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert not (tmp_path / "out").exists()


def figures(point, seed, correct, **changes):
    fields = {
        "point": point,
        "seed": seed,
        "correct": correct,
        "exact_match": sum(correct) / len(correct),
        "form": 1.0,
        "validation_loss_nats": 0.5,
        "trained_parameters": 1234,
        "train_s": 60.0,
        "resumed": False,
        "tokens_per_s": 100.0,
        "peak_memory_gb": 1.5,
    }
    return fields | changes


def test_seeds_are_averaged_and_points_compared_question_by_question(write_sweep, tmp_path):
    sweep = load_sweep(write_sweep(tmp_path / "sweep.yaml", seeds=[0, 1]))
    runs = [
        figures("base", 0, [1, 0, 0, 0]),
        figures("base", 1, [1, 0, 0, 0]),
        figures("num_heads=1", 0, [1, 1, 0, 0]),
        figures("num_heads=1", 1, [1, 1, 1, 0], resumed=True, validation_loss_nats=1.5),
    ]
    base, other = rows(sweep, runs)
    assert other["exact_match"] == {"value": 0.625, "interval": list(Score(2.5, 4).interval), "n": 4}
    assert other["seeds"] == {"0": 0.5, "1": 0.75} and other["validation_loss_nats"] == 1.0
    assert other["more_than_base"] == bootstrap([0, 1, 0.5, 0]).as_dict() and "more_than_base" not in base
    assert "F1" not in table(sweep, runs).header
    with_fields = table(sweep, [one | {"field_f1": {"all": 0.25 * (one["seed"] + 1)}} for one in runs])
    assert str(with_fields.rows[1][with_fields.header.index("F1")]) == "37.5%"
    shown = [str(cell) for cell in table(sweep, runs).rows[1]]
    assert shown[0] == "num_heads=1" and shown[2] == "50–75, 2" and shown[3].startswith("+37.5 (") and "≥ 60" in shown
    assert "4 of 4 runs have ended" in summary(sweep, runs)


def test_an_unfinished_point_is_compared_over_the_seeds_that_it_shares_with_the_base(write_sweep, tmp_path):
    sweep = load_sweep(write_sweep(tmp_path / "sweep.yaml", seeds=[0, 1]))
    bases = [figures("base", 0, [1, 1, 0]), figures("base", 1, [0, 0, 0])]
    _, point = rows(sweep, [*bases, figures("num_heads=1", 0, [1, 1, 0])])
    assert point["more_than_base"]["value"] == 0  # not +1/3, which the poor second seed of the base would make of it
    _, point = rows(sweep, [bases[0], figures("num_heads=1", 1, [1, 1, 0])])
    assert "more_than_base" not in point


def test_what_failed_is_said_and_stands_in_no_row(write_sweep, tmp_path):
    sweep = load_sweep(write_sweep(tmp_path / "sweep.yaml"))
    runs = [{"point": "base", "seed": 0, "failed": "no memory"}, figures("num_heads=1", 0, [1, 0])]
    (row,) = rows(sweep, runs)
    assert row["point"] == "num_heads=1" and "more_than_base" not in row
    assert "Failed: base, seed 0: no memory" in sentences(sweep, runs)
    assert rows(sweep, []) == [] and "0 of 2 runs" in summary(sweep, [])
