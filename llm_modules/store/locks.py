"""Who writes into a store's folder: each process its own share, and no two the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llm_modules.errors import UserError

WAIT_S = 600  # for another process that plans; the locks go with their process, however it ends


@contextmanager
def planning(folder: Path) -> Iterator[None]:
    """Alone with the folder's manifest and plan, for a moment."""
    with FileLock(folder / ".lock", timeout=WAIT_S):
        yield


@contextmanager
def after_other_runs(folder: Path, *, process: int, num_processes: int) -> Iterator[None]:
    """Let runs that want the same store fill it one after another: the next finds there what the last one read."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".run-{process}-of-{num_processes}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another run reads into {folder}; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Claim:
    """A process's share of an extraction, held until it is released or the process ends, however it ends.

    Args:
        folder: Of the store.
        process: Which of them, from 0.
        num_processes: How many share the work.

    Raises:
        UserError: If another process holds this share, or others divide the work differently.
    """

    def __init__(self, folder: Path, *, process: int, num_processes: int) -> None:
        self._folder = folder
        self._own = folder / f".process-{process}-of-{num_processes}.lock"
        self._lock = FileLock(self._own, timeout=0)
        for other in self._others():
            if not other.name.endswith(f"-of-{num_processes}.lock") and _held(other):
                raise self._taken(other)
        try:
            self._lock.acquire()
        except Timeout:
            raise self._taken(self._own) from None

    def refuse_others(self) -> None:
        """Make sure that no other process is at work.

        Raises:
            UserError: If one is.
        """
        for other in self._others():
            if _held(other):
                raise self._taken(other)

    @property
    def alone(self) -> bool:
        """Whether no other process is at work."""
        return not any(map(_held, self._others()))

    def release(self) -> None:
        """Leave the folder to others."""
        self._lock.release()

    def _others(self) -> list[Path]:
        return [path for path in sorted(self._folder.glob(".process-*-of-*.lock")) if path != self._own]

    def _taken(self, lock: Path) -> UserError:
        who = lock.stem.removeprefix(".").replace("-", " ")
        return UserError(
            f"another extraction ({who}) is writing into {self._folder}; wait until it ends, stop it, or choose "
            "another folder"
        )


def _held(path: Path) -> bool:
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False
