"""Open a store, here or on an object store, and take any text's states out of it by byte range."""

from collections.abc import Sequence
from pathlib import Path

import fsspec
import torch
from torch import Tensor

from llm_modules.errors import MissingFileError, UserError
from llm_modules.features import Text
from llm_modules.store.encoding import decode
from llm_modules.store.key import Key, text_digest
from llm_modules.store.manifest import MANIFEST, Entry, Manifest
from llm_modules.store.shards import HEADER_BYTES, Range, Shard


class FeatureStore:
    """The states of many texts, each at hand without reading its shard.

    Nothing is kept open and only indices are kept in memory: 36 bytes and a little a text.

    Args:
        location: Folder, or URL of one that fsspec knows (`s3://…`, `gs://…`, `memory://…`).
        entries: Its shards; `None` for all that its manifest names.

    Raises:
        UserError: If there is no store, or a shard is missing, cut off, or its index damaged.
    """

    def __init__(self, location: str | Path, *, entries: Sequence[Entry] | None = None) -> None:
        self.location = str(location).rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.location)
            self._files.invalidate_cache()
            sizes = {
                found["name"].rpartition("/")[2]: found["size"] for found in self._files.ls(self._root, detail=True)
            }
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.location} cannot be read ({error}); install what its protocol needs") from error
        except OSError:
            sizes = {}
        if MANIFEST not in sizes:
            raise MissingFileError(
                f"{self.location} holds no {MANIFEST}, so it is no feature store; give a folder or URL that "
                "`llm-modules extract` wrote"
            )
        manifest = self._files.cat_file(f"{self._root}/{MANIFEST}")
        self.manifest = Manifest.parse(manifest, location=self.location)
        self._shards = self._open(self.manifest.shards if entries is None else entries, sizes)
        self._places = {
            digest: (shard, row) for shard in self._shards.values() for row, digest in enumerate(shard.digests)
        }
        self._prefixes: dict[str, Tensor] = {}

    def check(self, wanted: Key) -> None:
        """Refuse states of another source, template, or anything else that they depend on.

        Raises:
            UserError: Naming every field that differs.
        """
        self.manifest.key.check(wanted, location=self.location)

    def __contains__(self, text: Text) -> bool:
        return text_digest(text) in self._places

    def __len__(self) -> int:
        return sum(entry.num_texts for entry in self.manifest.shards if entry.prefix_ids is None)

    def knowledge(self, texts: Sequence[Text]) -> list[Tensor]:
        """What the source says about each text: `[tokens, taps, d_source]`, in one request for all.

        Raises:
            UserError: If a text is not in the store, or a shard is gone or damaged.
        """
        places = [self._place(text) for text in texts]
        wanted = [(shard, span) for shard, row in places for span in shard.row_ranges(row)]
        content = iter(self._read(wanted))
        states = []
        for shard, row in places:
            try:
                own = decode(*shard.row(row, [next(content) for _ in shard.row_ranges(row)]))
            except ValueError as error:
                raise self._damaged(shard.entry, str(error)) from None
            prefix = shard.entry.prefix
            states.append(own if prefix is None else torch.cat([self._prefix(prefix), own]))
        return states

    def verify(self) -> None:
        """Read every byte, a text at a time.

        Raises:
            UserError: If a shard is gone or damaged.
        """
        for shard in self._shards.values():
            for row in range(len(shard.digests)):
                try:
                    shard.row(row, self._read([(shard, span) for span in shard.row_ranges(row)]))
                except ValueError as error:
                    raise error if isinstance(error, UserError) else self._damaged(shard.entry, str(error)) from None

    def _place(self, text: Text) -> tuple[Shard, int]:
        place = self._places.get(text_digest(text))
        if place is None:
            raise UserError(
                f"a text of {len(text)} tokens is not in the feature store {self.location}; run `llm-modules extract` "
                "again, which adds what is missing"
            )
        return place

    def _prefix(self, name: str) -> Tensor:
        """What the texts of a shard begin with; read once."""
        if name not in self._prefixes:
            shard = self._shards[name]
            content = self._read([(shard, span) for span in shard.row_ranges(0)])
            try:
                self._prefixes[name] = decode(*shard.row(0, content))
            except ValueError as error:
                raise self._damaged(shard.entry, str(error)) from None
        return self._prefixes[name]

    def _open(self, entries: Sequence[Entry], sizes: dict[str, int]) -> dict[str, Shard]:
        """All indices, in two requests."""
        for entry in entries:
            if entry.name not in sizes:
                raise self._damaged(entry, "is missing")
            if sizes[entry.name] != entry.num_bytes:
                raise self._damaged(entry, f"is cut off: {sizes[entry.name]:,} of {entry.num_bytes:,} bytes")
        beginnings = self._read_files([(entry, (0, min(HEADER_BYTES, entry.num_bytes))) for entry in entries])
        shards = []
        for entry, beginning in zip(entries, beginnings, strict=True):
            try:
                shards.append(Shard.of(entry, beginning))
            except ValueError as error:
                raise self._damaged(entry, str(error)) from None
        spans = [(shard.entry, span) for shard in shards for span in shard.index_ranges]
        indices = iter(self._read_files(spans))
        for shard in shards:
            try:
                shard.read_index_(next(indices), next(indices), next(indices))
            except ValueError as error:
                raise self._damaged(shard.entry, str(error)) from None
        return {shard.entry.name: shard for shard in shards}

    def _read(self, wanted: Sequence[tuple[Shard, Range]]) -> list[bytes]:
        return self._read_files([(shard.entry, span) for shard, span in wanted])

    def _read_files(self, wanted: Sequence[tuple[Entry, Range]]) -> list[bytes]:
        """Byte ranges of shards; an object store is asked for all of them at the same time."""
        paths = [f"{self._root}/{entry.name}" for entry, _ in wanted]
        starts, ends = [start for _, (start, _) in wanted], [end for _, (_, end) in wanted]
        found = self._files.cat_ranges(paths, starts, ends, on_error="return") if wanted else []
        for (entry, (start, end)), content in zip(wanted, found, strict=True):
            if isinstance(content, FileNotFoundError):
                raise self._damaged(entry, "is missing")
            if isinstance(content, Exception):
                raise UserError(
                    f"{self.location}/{entry.name} cannot be read ({content}); check the connection and the rights"
                ) from content
            if len(content) != end - start:
                raise self._damaged(entry, "is cut off")
        return found

    def _damaged(self, entry: Entry, why: str) -> UserError:
        return UserError(
            f"{self.location}/{entry.name} {why}; delete this file if it is there and run `llm-modules extract` again: "
            "only it is read anew"
        )
