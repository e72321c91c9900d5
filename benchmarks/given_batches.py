"""The batches that all competitors train on, and what the source says about them, as files between processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llm_modules.data.dataset import Collator
from llm_modules.data.templates import Example

BATCHES = "batches.json"
Actions = dict[str, Callable[..., Any]]  # of a competitor, by name


def write_batches(folder: Path, batches: list[list[Example]]) -> None:
    """Keep the token ids of these batches."""
    rows = [[[example.prompt_ids, example.response_ids] for example in batch] for batch in batches]
    (folder / BATCHES).write_text(json.dumps(rows))


def read_batches(folder: Path) -> list[list[Example]]:
    """The same batches, without knowledge."""
    return [[Example(*ids) for ids in batch] for batch in json.loads((folder / BATCHES).read_text())]


def write_knowledge(file: Path, batch: list[Example]) -> None:
    """Keep the knowledge of one batch."""
    torch.save([example.knowledge for example in batch], file)


def with_kept_knowledge(batch: list[Example], file: Path) -> list[Example]:
    """A batch with its knowledge. Any other place where knowledge is kept, such as a store, goes in here."""
    states = torch.load(file, mmap=True)  # only what a step uses comes into memory
    return [
        Example(example.prompt_ids, example.response_ids, kept) for example, kept in zip(batch, states, strict=True)
    ]


def knowledge_file(folder: Path, index: int, visibility: str) -> Path:
    """Where the knowledge of one batch is kept."""
    return folder / f"knowledge-{visibility}-{index}.pt"


def collated(batch: list[Example]) -> dict[str, Any]:
    """Arguments of a pair's `forward`; what the ids are padded with makes no difference."""
    return Collator(0)(batch)
