"""What is read is what was written: SHA-256 of every file of a folder beside them, and of a JSON file within it.

`SHA256SUMS` has the form of coreutils, so that `sha256sum --check SHA256SUMS` says the same without this library.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_modules.errors import UserError
from llm_modules.files import write_text

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\0]+)")
NOT_NOTED = (SUMS, "README.md")  # people edit a card, on the hub too; nothing reads it
OWN = "sha256"  # key of a JSON file's own digest


def seal(folder: Path, names: Iterable[str] | None = None) -> None:
    """Note the SHA-256 of each file of a folder, flushed to the disk and read back from it.

    Args:
        folder: With the files; those in folders below are not noted.
        names: Only these, beside what is noted already; `None` for all, but hidden ones and the card.
    """
    noted = {} if names is None or not (folder / SUMS).is_file() else dict(_noted(folder))
    if names is None:
        names = [
            file.name
            for file in folder.iterdir()
            if file.is_file() and file.name[0] != "." and file.name not in NOT_NOTED
        ]
    for name in names:
        noted[name] = file_digest(folder / name, flush=True)
    write_text(folder / SUMS, "".join(f"{noted[name]}  {name}\n" for name in sorted(noted)))


def is_sealed(folder: Path) -> bool:
    """Whether a folder says what its files are; those that other programs or earlier versions wrote do not."""
    return (folder / SUMS).is_file()


def sealed_names(folder: Path) -> set[str]:
    """Files that a folder answers for; none if it is not sealed.

    Raises:
        UserError: If its list cannot be read.
    """
    return {name for name, _ in _noted(folder)} if is_sealed(folder) else set()


def faults(folder: Path) -> list[str]:
    """What is wrong with the files of a sealed folder, a sentence each; nothing if all is as it was written."""
    try:
        noted = list(_noted(folder))
    except UserError as error:
        return [str(error)]
    found = []
    for name, digest in noted:
        if not (folder / name).is_file():
            found.append(f"{name} is missing")
        elif file_digest(folder / name) != digest:
            found.append(f"{name} has another SHA-256 than {SUMS} says")
    return found


def verify(folder: Path, *, otherwise: str = "restore it or save it again") -> None:
    """Make sure that a sealed folder is what was saved; one that is not sealed passes.

    Args:
        folder: With the files.
        otherwise: What the user can do, for the message.

    Raises:
        UserError: If a file is missing, changed or damaged.
    """
    if is_sealed(folder) and (found := faults(folder)):
        raise UserError(
            f"{folder} is not what was saved: {'; '.join(found)}. It was changed or damaged: {otherwise}; or, if you "
            f"changed it on purpose, remove {folder / SUMS}"
        )


def write_json(path: Path, fields: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write fields as JSON with their own digest under `sha256`, beside and renamed."""
    plain = json.loads(json.dumps(fields))  # as they will be read: keys are text, tuples are lists
    whole = plain | {OWN: fields_digest(plain)}
    write_text(path, json.dumps(whole, indent=indent, ensure_ascii=False) + "\n" * (indent is not None))


def read_json(path: Path, *, otherwise: str = "remove it and run the same again") -> dict[str, Any]:
    """Fields that `write_json` wrote, or that another program wrote without a digest.

    Args:
        path: Of the file.
        otherwise: What the user can do if it is damaged, for the message.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {otherwise}") from None


def parse_json(text: bytes | str) -> dict[str, Any]:
    """Fields without their digest, which was right.

    Raises:
        ValueError: If the text is no JSON object, or not what was written.
    """
    try:
        fields = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__} and no mapping")
    digest = fields.pop(OWN, None)
    if digest is not None and digest != fields_digest(fields):
        raise ValueError("its SHA-256 is another than it says")
    return fields


def fields_digest(fields: Any) -> str:
    """SHA-256 of fields, whatever their order and layout."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _noted(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and digests of the list."""
    file = folder / SUMS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}); restore it, or save the folder again") from None
    for number, line in enumerate(lines, start=1):
        found = LINE.fullmatch(line)
        if found is None or found[2] in (".", ".."):
            raise UserError(f"{file}, line {number} is no SHA-256 with the name of a file in this folder")
        yield found[2], found[1]


def file_digest(file: Path, *, flush: bool = False) -> str:
    """SHA-256 of a file, flushed to the disk before if asked."""
    with file.open("rb") as content:
        if flush:
            os.fsync(content.fileno())
        return hashlib.file_digest(content, "sha256").hexdigest()
