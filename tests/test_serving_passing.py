"""What was computed in passing leaves no workers behind: the engine's are then alone, and wait awake."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llm_modules.serving.passing import in_passing_thread

COUNT = """
import os, time, torch
from llm_modules.serving.passing import in_passing_thread

def compute():
    return torch.randn(600, 600) @ torch.randn(600, 600)

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
before = threads()
in_passing_thread(compute)
for _ in range(100):
    if threads() == before:
        break
    time.sleep(0.05)
in_passing = threads() - before
compute()
print(in_passing, threads() - before)
"""


def test_what_is_made_in_passing_is_returned():
    assert in_passing_thread(lambda: "made") == "made"


def test_what_fails_in_passing_is_raised():
    with pytest.raises(ValueError, match="made wrongly"):
        in_passing_thread(lambda: exec('raise ValueError("made wrongly")'))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="this torch computes without OpenMP")
def test_workers_of_a_passing_thread_end_with_it_and_those_of_others_stay():
    counted = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout.split()
    assert counted[0] == "0"
    assert int(counted[1]) > 0  # else nothing was counted
