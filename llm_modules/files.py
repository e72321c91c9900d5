"""Where things are kept, and writing that a kill cannot leave half done."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_modules.errors import UnwritableError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# what tokenizers and safetensors (in Rust) and torch (in C++) say of a full disk; they know no errno
SAID_WHEN_FULL = (
    "No space left on device", "os error 28", "unexpected pos", "iostream error", "PytorchStreamWriter failed writing",
)  # fmt: skip
HALF_WRITTEN = ".tmp"  # how names of what is being written end; they begin with a dot


def cache_folder() -> Path:
    """Folder for what can be made again: `$LLM_MODULES_CACHE`, or `llm_modules` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LLM_MODULES_CACHE") or Path(base) / "llm_modules")


def state_folder() -> Path:
    """Folder for what a user would miss: `llm_modules` in `$XDG_STATE_HOME`, or in the user's `.local/state`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "llm_modules"


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside, then rename: readers see the old file or the new one, never half of it.

    Raises:
        UnwritableError: If the disk is full or does not take it.
    """
    with told_if_unwritable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=HALF_WRITTEN)
        beside = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.chmod(0o644)  # a temporary file is private
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def remove_half_written(folder: Path) -> None:
    """Remove what a kill left of writing into a folder; only for who is alone in it."""
    for path in half_written(folder):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def half_written(folder: Path) -> list[Path]:
    """What is being written into a folder, or was when it was killed."""
    return sorted(folder.glob(f".*{HALF_WRITTEN}"))


@contextmanager
def told_if_unwritable(place: Path) -> Iterator[None]:
    """Say of a disk that is full or refuses, in whatever way a library noticed, what a user can do about it.

    Args:
        place: Folder that is written.

    Raises:
        UnwritableError: If it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in FULL or (code is None and any(said in str(error) for said in SAID_WHEN_FULL)):
            raise UnwritableError(
                f"the disk of {place} is full; what is finished is kept: make room and run the same again",
                code or errno.ENOSPC,
            ) from error
        if code in REFUSED:
            raise UnwritableError(
                f"{place} cannot be written ({os.strerror(code)}); change its rights, or choose another folder", code
            ) from error
        raise
