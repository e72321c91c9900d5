"""Small real disks for tests: they fill up, and can be made read-only."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest


def _mount(folder, options, *more):
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, *more, "tmpfs", folder], capture_output=True)


@contextmanager
def small_disk(folder, size):
    """A disk of so many bytes; skips the test where none can be mounted."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder.mkdir()
    mounted = _mount(folder, f"size={size}")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(folder, *, leave):
    """Take all room on a disk but so many bytes."""
    stat = os.statvfs(folder)
    (folder / "filler").write_bytes(b"\0" * max(0, stat.f_bavail * stat.f_frsize - leave))
