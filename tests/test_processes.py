"""Several processes learn what one learns, by DDP and by FSDP2, and go on where others, or one, stopped."""

import shutil

import pytest
import torch

from llm_modules import processes
from llm_modules.fingerprint import fingerprint_tensors, stored_tensors
from tests.several import RUNS, STEPS, run, several

KEPT = {"save_steps": 20, "save_total_limit": 9}


def largest_difference(found, expected):
    """Of all losses and norms; both took the same steps."""
    kinds = ("loss", "eval_loss", "grad_norm")
    assert all(found[kind].keys() == expected[kind].keys() for kind in kinds)
    return max(abs(found[kind][step] - value) for kind in kinds for step, value in expected[kind].items())


def check_learning(number, names, folder):
    for name, came in zip(names, several(number, [(name, folder / name, {}) for name in names], folder), strict=True):
        assert len(came["loss"]) == STEPS // 2 and came["loss"][STEPS] < came["loss"][2] - 1
        assert came["world_size"] == number
        divided, parameters = came["shards"]
        assert divided == (parameters if name.startswith("sharded") else 0)
        assert largest_difference(came, run(name, folder / f"{name}, alone")) < 1e-4, name


def test_what_is_agreed_on_the_cpu_has_a_backend_there_beside_the_accelerators_own(monkeypatch):
    for device, named in (("cpu", "cpu:gloo"), ("cuda", "cpu:gloo,cuda:nccl")):
        monkeypatch.setattr(processes, "best_device", lambda device=device: torch.device(device))
        assert processes.backends() == named


def test_two_processes_learn_what_one_learns(tmp_path):
    check_learning(2, ["accumulated", "sharded"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_whatever_the_wiring_several_processes_learn_what_one_learns(number, tmp_path):
    check_learning(number, list(RUNS), tmp_path)


@pytest.mark.parametrize("name", ["sharded", pytest.param("plain", marks=pytest.mark.slow)])
def test_two_processes_go_on_for_one_and_one_for_two(name, tmp_path):
    whole = run(name, tmp_path / "whole", **KEPT)
    there, back = tmp_path / "there", tmp_path / "back"
    shutil.copytree(tmp_path / "whole/checkpoints/checkpoint-20", there / "checkpoints/checkpoint-20")
    (came,) = several(2, [(name, there, KEPT | {"resume": True})], tmp_path)
    assert largest_difference(came, whole) < 1e-4
    shutil.copytree(there / "checkpoints/checkpoint-40", back / "checkpoints/checkpoint-40")
    assert largest_difference(run(name, back, **KEPT, resume=True), whole) < 1e-4


@pytest.mark.slow
def test_processes_that_divided_the_weights_are_followed_by_some_that_do_not(tmp_path):
    whole = run("sharded", tmp_path / "whole", **KEPT)
    shutil.copytree(tmp_path / "whole/checkpoints/checkpoint-20", tmp_path / "part/checkpoints/checkpoint-20")
    (came,) = several(2, [("sharded", tmp_path / "part", KEPT | {"resume": True, "sharding": "none"})], tmp_path)
    assert came["shards"][0] == 0
    assert largest_difference(came, whole) < 1e-4


@pytest.mark.slow
def test_a_divided_run_that_stops_early_ends_with_its_best_weights(tmp_path):
    worse = {"learning_rate_bridge": 1.0, "lr_scheduler": "constant", "eval_steps": 1, "early_stopping_patience": 2}
    (came,) = several(2, [("sharded", tmp_path / "run", worse | {"save_total_limit": 9})], tmp_path)
    losses = came["eval_loss"]
    best = min(losses, key=losses.get)
    assert best < max(losses)
    stored = tmp_path / "run" / "checkpoints" / f"checkpoint-{best}" / "model.safetensors"
    assert came["weights"] == fingerprint_tensors(stored_tensors([stored]))
