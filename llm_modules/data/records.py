"""Read records of any supported kind into conversations: lists of `{"role": …, "content": …}`.

Where records come from: a `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder that `datasets` can load, or the id of
a data set on the Hugging Face hub. What a record may hold:

| fields | meaning |
|---|---|
| `messages` | a list of `{"role": system / user / assistant, "content": text}` |
| `conversations` | ShareGPT: a list of `{"from": human / gpt / system or user / assistant, "value": text}` |
| `prompt`, `completion` | two texts, or two lists of messages |

A text field `system` beside any of them becomes the system turn. In CSV files the lists are written as JSON.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from llm_modules.errors import MissingFileError, UserError

Message = dict[str, str]
Conversation = list[Message]

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
FORMS = "`messages`, `conversations`, or `prompt` and `completion`"


def read_conversations(source: str | Path, *, split: str = "train") -> list[Conversation]:
    """Read every record of a file, folder or hub data set as a conversation.

    Args:
        source: A file (`.jsonl`, `.json`, `.csv`, `.parquet`), a folder, or a hub id such as `owner/name`, pinned as
            `owner/name@revision`.
        split: Which split of a folder or hub data set to read; files have none.

    Returns:
        One conversation per record, in the order of the records.

    Raises:
        MissingFileError: Nothing of this name is there, or the hub cannot be reached.
        UserError: The data are empty, broken, or a record lacks what training needs.
    """
    conversations = [
        to_conversation(record, where=f"{source}, record {number}")
        for number, record in enumerate(read_records(str(source), split=split), start=1)
    ]
    if not conversations:
        raise UserError(f"{source} is empty; it needs at least one record with {FORMS}")
    return conversations


def to_conversation(record: Mapping[str, Any], *, where: str = "record") -> Conversation:
    """Bring one record into the uniform form and check that there is a prompt and a response in it.

    Args:
        record: The fields of the record.
        where: How messages of errors name the record.

    Raises:
        UserError: Fields are missing, of the wrong type, or leave no prompt or no response.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where} is a {type(record).__name__}, not a mapping of fields; it needs {FORMS}")
    if _present(record, "messages"):
        turns = _turns(record["messages"], "messages", where, role_key="role", text_key="content")
    elif _present(record, "conversations"):
        turns = _turns(record["conversations"], "conversations", where, role_key="from", text_key="value")
    elif "prompt" in record and "completion" in record:
        turns = [
            *_side(record["prompt"], "prompt", where, role="user"),
            *_side(record["completion"], "completion", where, role="assistant"),
        ]
    else:
        fields = ", ".join(map(str, record)) or "none"
        raise UserError(f"{where} has the fields: {fields}; rename or convert them to {FORMS}")
    if _present(record, "system") and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": _text(record["system"], f"{where}: `system`")})
    _check_turns(turns, where)
    return turns


def response_turns(conversation: Conversation) -> list[Conversation]:
    """Cut a conversation into one training example per assistant turn, everything before it being prompt."""
    return [conversation[: i + 1] for i, turn in enumerate(conversation) if turn["role"] == "assistant"]


def _present(record: Mapping[str, Any], field: str) -> bool:
    """Tell whether a field is there and filled: tables hold a null where a record lacks a column."""
    return record.get(field) not in (None, "")


def _text(value: Any, where: str) -> str:
    """Accept text; a null counts as empty text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where} is a {type(value).__name__}, not text; only text can be trained on")
    return value


def _turns(value: Any, field: str, where: str, *, role_key: str, text_key: str) -> list[Message]:
    """Read a list of turns, or the same list written as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: `{field}` is neither a list nor JSON text ({error}); write a list") from None
    if not isinstance(value, list):
        raise UserError(f"{where}: `{field}` is a {type(value).__name__}; it must be a list of turns")
    turns = []
    for number, turn in enumerate(value, start=1):
        place = f"{where}: turn {number} of `{field}`"
        if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
            raise UserError(f"{place} must have `{role_key}` and `{text_key}`; it is {_short(turn)}")
        role = turn[role_key]
        if not isinstance(role, str) or role not in ROLES:
            raise UserError(f"{place} has the unknown role {role!r}; use one of {', '.join(ROLES)}")
        turns.append({"role": ROLES[role], "content": _text(turn[text_key], place)})
    return turns


def _side(value: Any, field: str, where: str, *, role: str) -> list[Message]:
    """Read `prompt` or `completion`: one text, or a list of messages."""
    if isinstance(value, list):
        return _turns(value, field, where, role_key="role", text_key="content")
    return [{"role": role, "content": _text(value, f"{where}: `{field}`")}]


def _check_turns(turns: list[Message], where: str) -> None:
    """Refuse a conversation in which some assistant turn has nothing to answer or nothing to say."""
    asked = False
    answered = False
    for turn in turns:
        filled = bool(turn["content"].strip())
        if turn["role"] == "user":
            asked = asked or filled
        elif turn["role"] == "assistant":
            answered = True
            if not asked:
                raise UserError(f"{where} has no prompt: no user text before the response; add it or drop the record")
            if not filled:
                raise UserError(f"{where} has no response: an assistant turn is empty; fill it or drop the record")
    if not answered:
        raise UserError(f"{where} has no response: there is no assistant turn; add it or drop the record")


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_records(source: str, *, split: str = "train", needs: str = FORMS) -> Iterable[Mapping[str, Any]]:
    """Open whatever `source` names and yield its raw records.

    Args:
        source: As for `read_conversations`.
        split: Likewise.
        needs: The fields that a record must have, for messages.

    Raises:
        MissingFileError: Nothing of this name is there, or the hub cannot be reached.
        UserError: The data are empty or broken.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, split)
    reader = _FILE_READERS.get(path.suffix.lower())
    if path.is_file():
        if reader is None:
            raise UserError(f"{source} has the ending {path.suffix!r}; known are {', '.join(_FILE_READERS)}")
        if path.stat().st_size == 0:
            raise UserError(f"{source} is empty; it needs at least one record with {needs}")
        return reader(path)
    looks_like_path = reader is not None or source.startswith(("/", ".", "~")) or source.count("/") > 1
    if looks_like_path:
        raise MissingFileError(f"{source} is not there; check the path (relative to {Path.cwd()})")
    return _read_hub(source, split)


@contextmanager
def _text_of(path: Path, **how: Any) -> Iterator[TextIO]:
    """An open file, and what may be wrong with it as text in a sentence.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", **how) as lines:
            yield lines
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}); save it as such") from None


def _read_jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    with _text_of(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number} is not JSON ({error}); write one JSON object a line") from None


def _read_json(path: Path) -> list[Mapping[str, Any]]:
    try:
        with _text_of(path) as text:
            records = json.loads(text.read())
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); one object a line belongs into a .jsonl file") from None
    if not isinstance(records, list):
        raise UserError(f"{path} holds a {type(records).__name__}; write a list of records, or use .jsonl")
    return records


def _read_csv(path: Path) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than some answers
    with _text_of(path, newline="") as lines:
        for row in csv.DictReader(lines):
            yield {field: value for field, value in row.items() if field is not None}


def _read_parquet(path: Path) -> list[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file ({error}); write it again") from None


_FILE_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _read_folder(path: Path, split: str) -> Iterable[Mapping[str, Any]]:
    """Load a folder written by `save_to_disk`, or one of data files."""
    import datasets

    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"the folder {path} does not load as a data set: {error}") from error
    return _choose_split(loaded, split, str(path))


def _read_hub(name: str, split: str) -> Iterable[Mapping[str, Any]]:
    import datasets

    name, _, revision = name.partition("@")
    try:
        loaded = datasets.load_dataset(name, revision=revision or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingFileError(
            f"{name!r} is neither a file or folder here nor a data set that the Hugging Face hub hands out now "
            f"({_short(str(error), 160)}). Without a network: on another machine run `hf download {name} "
            f"--repo-type dataset --local-dir FOLDER`, copy the folder here and pass its path; a data set that is "
            f"already in the cache is used with HF_HUB_OFFLINE=1"
        ) from error
    return _choose_split(loaded, split, name)


def _choose_split(loaded: Any, split: str, source: str) -> Iterable[Mapping[str, Any]]:
    """Take the wanted split; a data set with a single split has no choice."""
    if not isinstance(loaded, Mapping):
        return loaded
    if split in loaded:
        return loaded[split]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    raise UserError(f"{source} has no split {split!r}; it has {', '.join(loaded)}: pass the files of one as a folder")
