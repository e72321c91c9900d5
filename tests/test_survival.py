"""A few rounds of the two benchmarks that docs/survival.md cites: kill -9 at random moments, and bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def run_quickly(tmp_path):
    """A benchmark at its small size, in a process of its own: it forks, and measures its own memory."""

    def run(name):
        command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--output", str(tmp_path)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads((tmp_path / "benchmarks" / f"{name}.json").read_text())

    return run


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="forks, and looks into /proc")
def test_killed_at_random_moments_the_same_command_ends_with_the_very_same_parameters(run_quickly):
    counts = run_quickly("kill9")["counts"]
    assert counts.keys() == {"training", "extraction", "saving"}
    assert all(count["kills"] and not count["wrong"] for count in counts.values())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory by /proc")
def test_bad_input_is_refused_by_a_sentence_in_little_time_and_memory(run_quickly):
    readers = run_quickly("bad_input")["readers"]
    assert sum(reader["inputs"] for reader in readers.values()) >= 200
    for name, reader in readers.items():
        assert reader["refused"] and not reader["wrong"], name
        assert reader["most_bytes"] < 64 * 2**20, name
