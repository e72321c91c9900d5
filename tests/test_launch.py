"""`torchrun … -m llm_modules train`, extract and evaluate: one voice, one writer, one result; and what goes wrong."""

import json
import signal
import socket
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from llm_modules.cli import app
from llm_modules.loading import load_trained
from llm_modules.settings import load_settings
from llm_modules.training import last_checkpoint, train
from tests.several import ROOT, command, launch, surroundings
from tests.test_store import contents
from tests.test_training import conversations, run_settings, write_lines


@pytest.fixture
def recipe(tmp_path, talking_source):
    """A YAML file of a run of some seconds."""
    train_file = write_lines(tmp_path / "train.jsonl", conversations(24))
    settings = run_settings(tmp_path / "run", talking_source, train_file, training={"max_steps": 6, "batch_size": 4})
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))
    return file


def two_hosts(recipe, *overrides, env=({}, {}), cwd=(ROOT, ROOT), extra=((), ())):
    """A launcher each on two hosts, as far as processes can tell; both started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = []
    for index in range(2):
        options = ("--nnodes=2", f"--node-rank={index}", "--master-addr=127.0.0.1", f"--master-port={port}")
        hosts.append(subprocess.Popen(
            command(1, "train", recipe, *overrides, *extra[index], options=options), env=surroundings(**env[index]),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd[index],
        ))  # fmt: skip
    return hosts


def ended(hosts, timeout_s=120):
    """What each of them said in the end, and how it ended."""
    told = [host.communicate(timeout=timeout_s) for host in hosts]
    return [" ".join(err.split()) for _, err in told], [host.returncode for host in hosts]


def worker_of(host, timeout_s=90):
    """The process that a launcher started, once it trains."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := psutil.Process(host.pid).children():
            return found[0]
        time.sleep(0.1)
    raise TimeoutError


def wait_for_checkpoint(folder, timeout_s=120):
    end = time.monotonic() + timeout_s
    while last_checkpoint(folder / "checkpoints") is None:
        assert time.monotonic() < end
        time.sleep(0.1)


# -- what works ------------------------------------------------------------------------------------------------------


def test_one_of_two_processes_speaks_and_the_model_is_that_of_one(recipe, tmp_path):
    told = launch(2, "train", recipe, "training.sharding=fsdp2")
    assert told.returncode == 0, told.stderr
    for line in ("2 processes share every batch", "saved ", "kept 22 of 22 examples", "'eval_loss'"):
        assert told.stdout.count(line) == 1, line
    assert told.stderr.count("source reads training data: 100%") == 1
    both, _ = load_trained(tmp_path / "run" / "model")
    assert not [name for name in both.state_dict() if name.startswith("source")]
    alone, _ = load_trained(train(load_settings(recipe, [f"training.output_dir={tmp_path / 'alone'}"])))
    assert both.config.architectures == alone.config.architectures == ["CombinedModel"]
    assert both.state_dict().keys() == alone.state_dict().keys()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        path.name for path in (tmp_path / "alone").iterdir()
    )


@pytest.mark.slow
def test_accelerate_launches_it_too(recipe):
    options = ["--config_file", "launch/accelerate/one-host.yaml", "--num_processes", "2"]
    told = subprocess.run(
        ["accelerate", "launch", *options, "-m", "llm_modules", "train", str(recipe)], capture_output=True, text=True,
        env=surroundings(), timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("2 processes share every batch") == told.stdout.count("saved ") == 1


def test_two_processes_extract_what_one_does_and_answer_as_one_does(recipe, tmp_path):
    for number, name in ((1, "one"), (2, "two")):
        told = launch(number, "extract", recipe, "--out", tmp_path / name)
        assert told.returncode == 0, told.stderr
        assert told.stdout.count("finished: ") == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    model = train(load_settings(recipe, ["training.max_steps=3"]))
    test_file = tmp_path / "test.jsonl"
    test_file.write_text("".join(json.dumps({"question": f"{i} - 2 ?", "answer": "3"}) + "\n" for i in range(5)))
    found = []
    for number in (1, 2):
        figures = tmp_path / f"{number}.json"
        asked = (
            "--task",
            "jsonl",
            "--verifier",
            "exact",
            "--data",
            test_file,
            "--max-new-tokens",
            5,
            "--json",
            figures,
        )
        told = launch(number, "evaluate", model, *asked)
        assert told.returncode == 0, told.stderr
        written = json.loads(figures.read_text())
        found.append({key: value for key, value in written.items() if key not in ("tokens_per_s", "sha256")})
    assert found[0] == found[1]


@pytest.mark.slow
def test_clocks_may_disagree(recipe, tmp_path):
    """A day apart, and one of them standing still."""
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(
        "import time\nnow = time.time()\ntime.time = lambda: now - 86400\n"
    )
    hosts = two_hosts(recipe, env=({}, {"PYTHONPATH": f"{tmp_path / 'late'}:{ROOT}"}))
    told, codes = ended(hosts)
    assert codes == [0, 0], told
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_the_run_goes_on(recipe, tmp_path):
    options = [
        "training.max_steps=100000",
        "training.save_steps=50",
        "training.resume=auto",
        "data.validation_fraction=0",
    ]
    host = subprocess.Popen(command(2, "train", recipe, *options), env=surroundings(), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, cwd=ROOT)  # fmt: skip
    wait_for_checkpoint(tmp_path / "run")
    host.send_signal(signal.SIGINT)
    out, err = host.communicate(timeout=60)
    assert "stopping after this step" in err and "interrupted; the same command goes on: " in out, err
    kept = last_checkpoint(tmp_path / "run" / "checkpoints")
    step = int(kept.name.partition("-")[2])
    again = launch(2, "train", recipe, *options[1:], f"training.max_steps={step + 2}")
    assert again.returncode == 0, again.stderr


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signalled", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_when_a_process_dies_or_hangs_the_others_say_so_and_the_run_goes_on(signalled, recipe, tmp_path):
    options = ["training.save_steps=20", "training.resume=auto", "training.timeout_s=10", "data.validation_fraction=0"]
    hosts = two_hosts(recipe, *options, "training.max_steps=100000")
    wait_for_checkpoint(tmp_path / "run")
    dying = worker_of(hosts[1])
    dying.send_signal(signalled)
    start = time.monotonic()
    err = hosts[0].communicate(timeout=60)[1]
    assert time.monotonic() - start < 45
    told = " ".join(err.split())
    assert "process 0 of 2 has lost the others: one has ended, or did not answer for 10 s" in told
    assert "run the same again" in told and hosts[0].returncode != 0
    with suppress(psutil.NoSuchProcess):
        dying.kill()
    hosts[1].communicate(timeout=60)
    assert hosts[1].returncode != 0
    step = int(last_checkpoint(tmp_path / "run" / "checkpoints").name.partition("-")[2])
    again = launch(2, "train", recipe, *options, f"training.max_steps={step + 2}")
    assert again.returncode == 0, again.stderr


def test_hosts_that_mean_different_runs_are_told_apart(recipe, tmp_path):
    old = tmp_path / "old" / "accelerate-0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: accelerate\nVersion: 0.1\n")
    env = ({}, {"PYTHONPATH": f"{tmp_path / 'old'}:{ROOT}"})
    told, codes = ended(two_hosts(recipe, env=env, extra=((), ("training.seed=7",))))
    assert codes != [0, 0] and 0 not in codes
    assert "process 1 of 2 differs from process 0 (training.seed: 7, there 0; accelerate: 0.1, there " in told[0]
    assert "start all with the same command" in told[0]
    assert "differs from" not in told[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_hosts_with_different_stores_are_told_apart(recipe, tmp_path):
    for index in range(2):
        (tmp_path / str(index)).mkdir()
        overrides = [] if index == 0 else ["data.num_examples=20"]
        done = CliRunner().invoke(
            app, ["extract", str(recipe), *overrides, "--out", str(tmp_path / str(index) / "store")]
        )
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["extract", str(recipe), "--out", str(tmp_path / "1" / "store")])
    hosts = two_hosts(recipe, "training.features=store", cwd=(tmp_path / "0", tmp_path / "1"))
    told, codes = ended(hosts)
    assert 0 not in codes
    assert "process 1 of 2 differs from process 0 (feature store: 24 texts, " in told[0]


def test_data_that_differ_are_told_apart(recipe, tmp_path):
    here = [tmp_path / "0", tmp_path / "1"]
    for index, folder in enumerate(here):
        folder.mkdir()
        write_lines(folder / "own.jsonl", conversations(24)[index:])
    told, codes = ended(two_hosts(recipe, "data.train_file=own.jsonl", cwd=here))
    assert 0 not in codes
    assert "process 1 of 2 differs from process 0 (training data: " in told[0]


def test_a_folder_that_holds_something_is_refused_once(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note").touch()
    told = launch(2, "train", recipe)
    assert told.returncode != 0
    assert " ".join(told.stderr.split()).count("exists and is not empty; choose another") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["note"]


@pytest.mark.parametrize(("env", "arguments", "message"), [
    ({"WORLD_SIZE": "2", "MASTER_ADDR": "here"}, ["chat", "nowhere"], "llm-modules chat runs in one process"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, ["train"], "MASTER_ADDR does not say where; start them with torchrun"),
    ({"ACCELERATE_USE_FSDP": "true"}, ["train"], "turns FSDP on, whose checkpoints only the same number of processes"),
    ({}, ["train", "training.sharding=fsdp2", "training.optimizer=muon"], "muon turns whole matrices"),
])  # fmt: skip
def test_what_cannot_be_shared_is_refused_at_once(env, arguments, message, recipe):
    verb, *rest = arguments
    given = [verb, str(recipe), *rest] if verb == "train" else arguments
    done = CliRunner(env=env).invoke(app, given)
    assert done.exit_code == 2 and message in " ".join(done.output.split())


def test_a_batch_smaller_than_the_number_of_processes_is_refused(monkeypatch, recipe):
    from llm_modules import training

    monkeypatch.setattr(training, "num_processes", lambda: 8)
    monkeypatch.setenv("WORLD_SIZE", "8")
    done = CliRunner().invoke(app, ["train", str(recipe)])
    assert "training.batch_size=4 gives 8 processes less than an example each" in " ".join(done.output.split())
