"""Two hosts, as network namespaces joined by a cable: a run on both, the cable cut, and the same run again."""

import os
import shutil
import subprocess
import time
from contextlib import suppress

import pytest

from tests.several import ROOT, command, surroundings
from tests.test_launch import recipe, wait_for_checkpoint  # noqa: F401 - a fixture

ADDRESSES = ("10.77.19.1", "10.77.19.2")
NAMES = (f"llm-a-{os.getpid()}", f"llm-b-{os.getpid()}")
CABLE = (f"va{os.getpid()}", f"vb{os.getpid()}")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts():
    if shutil.which("ip") is None:
        pytest.skip("there is no ip (Debian, Ubuntu: iproute2)")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        for name, end, address in zip(NAMES, CABLE, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here ({error.stderr.decode().strip()})")
    finally:
        for name in NAMES:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def start(recipe, *overrides):  # noqa: F811
    started = []
    for index, (name, end) in enumerate(zip(NAMES, CABLE, strict=True)):
        options = ("--nnodes=2", f"--node-rank={index}", f"--master-addr={ADDRESSES[0]}", "--master-port=29477")
        started.append(subprocess.Popen(
            ["ip", "netns", "exec", name, *command(1, "train", recipe, *overrides, options=options)],
            env=surroundings(GLOO_SOCKET_IFNAME=end, TP_SOCKET_IFNAME=end), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        ))  # fmt: skip
    return started


@pytest.mark.slow
def test_a_cut_cable_ends_both_hosts_and_the_run_goes_on(hosts, recipe, tmp_path):  # noqa: F811
    options = ["training.save_steps=20", "training.resume=auto", "training.timeout_s=10", "data.validation_fraction=0"]
    started = start(recipe, *options, "training.max_steps=100000")
    wait_for_checkpoint(tmp_path / "run")
    ip("-n", NAMES[1], "link", "set", CABLE[1], "down")
    cut = time.monotonic()
    told = [host.communicate(timeout=120) for host in started]
    print(f"both ended {time.monotonic() - cut:.0f} s after the cut")
    for index, (host, (_, err)) in enumerate(zip(started, told, strict=True)):
        assert host.returncode != 0
        assert f"process {index} of 2 has lost the others: one has ended, or did not answer for 10 s" in " ".join(
            err.split()
        )
    ip("-n", NAMES[1], "link", "set", CABLE[1], "up")
    kept = [int(path.name.partition("-")[2]) for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")]
    again = start(recipe, *options, f"training.max_steps={max(kept) + 2}")
    told = [host.communicate(timeout=240) for host in again]
    assert [host.returncode for host in again] == [0, 0], told
    assert (tmp_path / "run" / "model" / "config.json").is_file()
