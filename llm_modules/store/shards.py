"""A shard: one safetensors file with the states of many texts, and where each begins.

states     [tokens, taps, d_source]   in the store's dtype, text after text, without what they all begin with
scales     [tokens, taps]             int8 only
offsets    [num_texts + 1]            int64, first token of each text, and the end
digests    [num_texts, 16]            uint8, which text (key.text_digest)
checksums  [num_texts]                int64, CRC-32 of the text's states and scales
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from llm_modules.features import Text
from llm_modules.files import write_bytes
from llm_modules.store.encoding import StoredDtype, checksum, encode
from llm_modules.store.key import text_digest
from llm_modules.store.manifest import Entry

HEADER_BYTES = 4096  # at most; ours takes a few hundred
INDEX = ("offsets", "digests", "checksums")
DTYPES = {
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I8": torch.int8, "I64": torch.int64,
    "U8": torch.uint8,
}  # fmt: skip

Range = tuple[int, int]


def write_shard(
    path: Path, states: Iterable[tuple[Text, Tensor]], *, dtype: StoredDtype, prefix: str | None = None,
    prefix_ids: list[int] | None = None,
) -> Entry:  # fmt: skip
    """Write a shard beside its final name, then rename, then say that it is finished.

    Args:
        path: Of the file.
        states: Each text with its states `[tokens, taps, d_source]`, those of the prefix left out.
        dtype: To store them in.
        prefix: Name of the shard that holds what all texts begin with.
        prefix_ids: If this is such a shard: its one text.
    """
    texts, encoded = [], []
    for text, found in states:
        texts.append(text)
        encoded.append(encode(found, dtype))
    lengths = [stored.shape[0] for stored, _ in encoded]
    index = {
        "offsets": torch.tensor([0, *accumulate(lengths)]),
        "digests": torch.tensor([list(text_digest(text)) for text in texts], dtype=torch.uint8),
        "checksums": torch.tensor([checksum(*parts) for parts in encoded]),
    }
    packed = {"states": torch.cat([stored for stored, _ in encoded])}
    if dtype == "int8":
        packed["scales"] = torch.cat([scales for _, scales in encoded if scales is not None])
    content = save(packed | index)
    header_size = 8 + int.from_bytes(content[:8], "little")
    entry = Entry(
        name=path.name,
        num_texts=len(texts),
        num_tokens=sum(lengths),
        num_bytes=len(content),
        header_checksum=checksum(content[:header_size]),
        index_checksum=checksum(*index.values()),
        prefix=prefix,
        prefix_ids=prefix_ids,
    )
    write_bytes(path, content)
    entry.write(path.parent)
    return entry


@dataclass
class Shard:
    """Where in a shard's file what lies; its states stay there.

    Args:
        entry: What the manifest says of it.
        header: Of the safetensors file: per tensor its `dtype`, `shape` and `data_offsets`.
        data_start: First byte after the header.
    """

    entry: Entry
    header: dict[str, Any]
    data_start: int
    offsets: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    checked: set[int] = field(default_factory=set)  # rows whose bytes were right

    @classmethod
    def of(cls, entry: Entry, beginning: bytes) -> "Shard":
        """From the first bytes of the file.

        Raises:
            ValueError: If they are no such header.
        """
        data_start = 8 + int.from_bytes(beginning[:8], "little")
        if checksum(beginning[:data_start]) != entry.header_checksum:
            raise ValueError("has another header than was written (checksum)")
        return cls(entry, json.loads(beginning[8:data_start]), data_start)

    @property
    def index_ranges(self) -> list[Range]:
        """Where offsets, digests and checksums lie in the file."""
        return [self._span(name, 0, self.header[name]["shape"][0]) for name in INDEX]

    def read_index_(self, offsets: bytes, digests: bytes, checksums: bytes) -> None:
        """Take in the index.

        Raises:
            ValueError: If it is not what was written.
        """
        if checksum(offsets, digests, checksums) != self.entry.index_checksum:
            raise ValueError("has another index than was written (checksum)")
        self.offsets = torch.frombuffer(bytearray(offsets), dtype=torch.int64).tolist()
        self.digests = [digests[start : start + 16] for start in range(0, len(digests), 16)]
        self.checksums = torch.frombuffer(bytearray(checksums), dtype=torch.int64).tolist()

    def row_ranges(self, row: int) -> list[Range]:
        """Where the states, and for int8 the scales, of a text lie in the file."""
        span = self.offsets[row], self.offsets[row + 1]
        return [self._span(name, *span) for name in ("states", "scales") if name in self.header]

    def row(self, row: int, content: list[bytes]) -> tuple[Tensor, Tensor | None]:
        """A text's states and scales as stored, checked the first time.

        Raises:
            ValueError: If they are not what was written.
        """
        if row not in self.checked:
            if checksum(*content) != self.checksums[row]:
                raise ValueError(f"has other states than were written for its text {row} (checksum)")
            self.checked.add(row)
        found = [
            torch.frombuffer(bytearray(part), dtype=DTYPES[self.header[name]["dtype"]])
            for name, part in zip(("states", "scales"), content, strict=False)
        ]
        states = found[0].view(-1, *self.header["states"]["shape"][1:])
        return states, found[1].view(states.shape[:2]) if len(found) > 1 else None

    def _span(self, name: str, first: int, last: int) -> Range:
        """Bytes of rows `first` to `last` of a tensor."""
        described = self.header[name]
        start, end = described["data_offsets"]
        row = (end - start) // described["shape"][0]
        return self.data_start + start + first * row, self.data_start + start + last * row
