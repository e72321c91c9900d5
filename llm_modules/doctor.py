"""`llm-modules doctor`: what lies in a folder, what of it is broken, what to do. It reads every byte, changes none."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Column, Table

from llm_modules.checksums import faults, is_sealed, read_json
from llm_modules.configuration import CombinedConfig
from llm_modules.default_source import built_in_gguf, is_built_in
from llm_modules.errors import MissingFileError, UserError
from llm_modules.files import half_written
from llm_modules.fingerprint import stored_tensors, weight_files
from llm_modules.folders import is_held
from llm_modules.run_folder import CHECKPOINTS, MODEL, SETTINGS, STATE, last_checkpoint
from llm_modules.settings import load_settings
from llm_modules.source_files import stored_config
from llm_modules.storage import verify_model
from llm_modules.store.manifest import MANIFEST
from llm_modules.store.plan import PLAN
from llm_modules.store.reader import FeatureStore

State = Literal["whole", "unfinished", "broken"]
AGAIN = "run the same command again"
COLOURS = {"whole": "green", "unfinished": "yellow", "broken": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that lies there.

    Attributes:
        path: Where.
        what: A word for what it is.
        state: Whether it can be used.
        says: What was found.
        do: What to do about it; empty if nothing.
    """

    path: str
    what: str
    state: State
    says: str
    do: str = ""


def doctor(place: Path, *, as_json: bool) -> int:
    """All of `llm-modules doctor`; how many things are broken.

    Args:
        place: A run, a model, a checkpoint, a store, a sweep, a comparison, or a folder with some of them.
        as_json: Print JSON in place of a table.

    Raises:
        UserError: If there is nothing of ours in it.
    """
    found = examine(place)
    broken = sum(finding.state == "broken" for finding in found)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False))
        return broken
    table = Table(Column("where", overflow="fold"), "what", "state", "found", Column("what to do", overflow="fold"))
    for one in found:
        where = str(Path(one.path).relative_to(place)) if one.path != str(place) else str(place)
        table.add_row(where, one.what, f"[{COLOURS[one.state]}]{one.state}[/]", one.says, one.do)
    Console(soft_wrap=False).print(table)
    unfinished = sum(finding.state == "unfinished" for finding in found)
    print(f"{len(found)} things: {len(found) - broken - unfinished} whole, {unfinished} unfinished, {broken} broken")
    return broken


def examine(place: Path) -> list[Finding]:
    """Everything in a folder that this library writes.

    Raises:
        UserError: If there is nothing of it.
    """
    if not place.exists():
        raise MissingFileError(f"{place} is not there; check the path (relative to {Path.cwd()})")
    found = list(_folder(place) if place.is_dir() else _file(place))
    if not found:
        raise UserError(
            f"{place} holds nothing that llm-modules wrote; give a run, a model, a checkpoint, a feature store, a "
            "sweep or a comparison"
        )
    return found


def _folder(folder: Path) -> Iterator[Finding]:
    if (folder / MANIFEST).is_file():
        yield _store(folder)
    elif folder.name.startswith("checkpoint-"):
        yield _checkpoint(folder)
    elif (folder / "config.json").is_file() or is_sealed(folder):
        yield _model(folder)
    else:
        if (folder / SETTINGS).is_file() or (folder / CHECKPOINTS).is_dir():
            yield _run(folder)
        for inside in sorted(folder.iterdir()):
            if not inside.name.startswith("."):
                yield from _folder(inside) if inside.is_dir() else _file(inside)
    for left in half_written(folder):
        yield Finding(str(left), "half written", "unfinished", "is being written, or was when it was killed", AGAIN)


def _run(folder: Path) -> Finding:
    last = last_checkpoint(folder / CHECKPOINTS)
    if is_held(folder):
        return Finding(str(folder), "run", "unfinished", "is running now", "wait until it ends")
    if (folder / MODEL).is_dir():
        return Finding(str(folder), "run", "whole", "has ended")
    goes_on = f"it goes on from {last.name}" if last else "it begins anew"
    return Finding(str(folder), "run", "unfinished", "has not ended", f"{AGAIN}; {goes_on}")


def _checkpoint(folder: Path) -> Finding:
    found = _faults(folder)
    if not (folder / STATE).is_file():
        found.append(f"{STATE} is missing")
    if not found:
        return Finding(str(folder), "checkpoint", "whole", _sealed(folder))
    return Finding(str(folder), "checkpoint", "broken", "; ".join(found), f"rm -r {folder} and {AGAIN}")


def _model(folder: Path) -> Finding:
    found, says = _faults(folder), _sealed(folder)
    what, again = "model", "restore it or save it again"
    if folder.name == MODEL and last_checkpoint(folder.parent / CHECKPOINTS) is not None:
        again = f"rm -r {folder} and {AGAIN}: it is saved again from the last checkpoint"
    if not found and (folder / "config.json").is_file():
        try:
            config = stored_config(folder)
            if isinstance(config, CombinedConfig):
                verify_model(folder, config)
                missing = _missing_source(config)
                if missing:
                    return Finding(str(folder), what, "unfinished", f"{says}; {missing}", "bring it, or pass source=")
            else:
                what = config.model_type
        except UserError as error:
            found.append(str(error))
    if found:
        return Finding(str(folder), what, "broken", "; ".join(found), again)
    return Finding(str(folder), what, "whole", says)


def _missing_source(config: CombinedConfig) -> str:
    """Why its source is not at hand here, if so; the hub is not asked."""
    name = config.source_id
    if name is None:
        return "its source was never stored"
    if is_built_in(name):
        return "" if built_in_gguf() is not None else "its source comes with a package that is not installed"
    return f"its source {name} is not there" if Path(name).is_absolute() and not Path(name).exists() else ""


def _store(folder: Path) -> Finding:
    unfinished = (folder / PLAN).is_file()
    try:
        store = FeatureStore(folder)
        store.verify()
    except UserError as error:
        return Finding(str(folder), "feature store", "broken", str(error), "as said; then extract again")
    says = f"{len(store):,} texts, every byte as it was written"
    if unfinished:
        return Finding(
            str(folder),
            "feature store",
            "unfinished",
            f"{says}; an extraction has not ended",
            f"extract again; {AGAIN}",
        )
    return Finding(str(folder), "feature store", "whole", says)


def _file(file: Path) -> Iterator[Finding]:
    """A file beside the folders; those of other programs are passed over."""
    problem, what, do = "", file.suffix[1:], AGAIN
    if file.name == SETTINGS:
        what = "settings"
        try:
            load_settings(file)
        except UserError as error:
            problem, do = str(error), "restore it, or begin the run in another folder"
    elif file.suffix == ".json":
        what, do = "figures", f"remove it and {AGAIN}"
        try:
            fields = read_json(file)
            if "failed" in fields:
                yield Finding(str(file), what, "unfinished", f"failed: {fields['failed']}", AGAIN)
                return
        except UserError as error:
            problem = str(error)
    elif file.suffix == ".png":
        content = file.read_bytes()
        what, problem = "picture", "" if content[:4] == b"\x89PNG" and content[-8:-4] == b"IEND" else "is cut off"
    elif file.suffix in (".html", ".md"):
        what, problem = "report", "" if file.stat().st_size else "is empty"
    else:
        return
    yield Finding(str(file), what, "broken" if problem else "whole", problem or "", do if problem else "")


def _faults(folder: Path) -> list[str]:
    if is_sealed(folder):
        return faults(folder)
    try:
        for _ in stored_tensors(weight_files(folder)):
            pass
    except UserError as error:
        return [str(error)]
    return []


def _sealed(folder: Path) -> str:
    return "as its SHA256SUMS say" if is_sealed(folder) else "readable; it has no SHA256SUMS to compare with"
