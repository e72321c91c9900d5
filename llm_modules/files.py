"""Where things are kept, and writing that a kill cannot leave half done."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llm_modules.errors import UserError


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
    """Write beside, then rename: readers see the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
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


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes its final name only when the block ends without an error.

    If `folder` already exists, its files are replaced one by one, `config.json` last. Weights of
    the model that was there go, other files stay.

    Raises:
        UserError: If there cannot be such a folder.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another output folder") from error
    if folder.exists() and not folder.is_dir():
        beside.rmdir()
        raise UserError(f"{folder} is a file, not a folder; choose another output folder")
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp makes it private
        if not folder.exists():
            with suppress(OSError):  # another process was first
                beside.rename(folder)
                return
        for stale in folder.glob("model*.safetensors*"):  # shards of a larger model that was here before
            if not (beside / stale.name).exists():
                stale.unlink()
        for file in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
