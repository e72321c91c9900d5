"""Folders that take their name when they are complete, and folders that one run at a time may fill."""

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llm_modules.checksums import seal, sealed_names
from llm_modules.errors import UserError
from llm_modules.files import HALF_WRITTEN, told_if_unwritable

LOCK = ".lock"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
PATIENCE_S = 2  # a run that was killed holds its folder until its process has gone


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes its final name only when the block ends without an error, sealed.

    If `folder` already exists, the new one takes its place at once. What the old one was sealed with and weights of the
    model that was there go, other files stay.

    Raises:
        UserError: If there cannot be such a folder, or the disk is full.
    """
    folder = folder.resolve()  # of a link, what it points to is replaced
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside, lock = _new_beside(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another output folder") from error
    if folder.exists() and not folder.is_dir():
        beside.rmdir()
        os.close(lock)
        raise UserError(f"{folder} is a file, not a folder; choose another output folder")
    try:
        with told_if_unwritable(folder.parent):
            yield beside
            beside.chmod(0o755)  # mkdtemp makes it private
            seal(beside)
            if folder.exists():
                _replace(folder, beside)
            else:
                with suppress(OSError):  # another process was first
                    beside.rename(folder)
    finally:
        os.close(lock)
        shutil.rmtree(beside, ignore_errors=True)


def _replace(folder: Path, beside: Path) -> None:
    """Put the new folder in the place of the old one; a kill leaves one of the two, whole."""
    stale = {file.name for file in folder.glob("model*.safetensors*")}  # shards of a larger model that was here before
    with suppress(UserError):  # what it was sealed with cannot be read: all but weights stay
        stale |= sealed_names(folder)
    for other in folder.iterdir():
        if other.name in stale or (beside / other.name).exists():
            continue
        if other.is_dir():
            shutil.copytree(other, beside / other.name, copy_function=_link, symlinks=True)
        else:
            _link(other, beside / other.name)
    if _exchanged(folder, beside):
        return  # what is beside now goes
    before = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=HALF_WRITTEN))
    try:
        folder.replace(before)  # onto an empty folder
    except OSError:  # a mount point cannot be renamed: file by file, what says that all is there last
        for file in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
            file.replace(folder / file.name)
    else:
        beside.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names at once, where system and disk can: at no moment is there no folder."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other))
    return renameat2 is not None and renameat2(*names, RENAME_EXCHANGE) == 0


def _new_beside(folder: Path) -> tuple[Path, int]:
    """A new folder beside, and a lock on it that goes with this process; those of processes that have gone go."""
    for left in folder.parent.glob(f".{folder.name}.*{HALF_WRITTEN}"):
        with suppress(OSError):  # somebody else's
            os.close(_locked(left))
            shutil.rmtree(left, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=HALF_WRITTEN))
    return beside, _locked(beside)


def _locked(folder: Path) -> int:
    """A lock on a folder of this name.

    Raises:
        OSError: If another process holds it, or such locks are not to be had here.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _link(file: str | Path, copy: str | Path) -> None:
    """The same file under a second name, where the disk can; the first stays until the old folder goes."""
    try:
        os.link(file, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, copy, follow_symlinks=False)


@contextmanager
def alone_in(folder: Path, *, what: str) -> Iterator[None]:
    """Hold a folder, so that no second run writes into it; however the process ends, it is free again.

    Args:
        folder: Made if it is not there.
        what: What runs, for the message to the second.

    Raises:
        UserError: If another process holds it, or it cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=PATIENCE_S)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another {what} is writing into {folder}; wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another") from error
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a run is at work in a folder now."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # not ours to lock
        return False
    lock.release()
    return False
