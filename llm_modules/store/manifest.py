"""`manifest.json`: whose states a store holds, and which shards; a shard's own entry until it is in there."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from llm_modules.checksums import parse_json, write_json
from llm_modules.errors import UserError
from llm_modules.store.key import Key

FORMAT: Final = 1
MANIFEST = "manifest.json"


# no path: a manifest may have come from elsewhere, and what it names is read, replaced and removed
ShardName = Annotated[str, StringConstraints(pattern=r"^(shard|prefix)-[0-9a-f]+\.safetensors$")]


class Entry(BaseModel):
    """A finished shard.

    Args:
        name: Of its file.
        num_texts: Texts in it.
        num_tokens: Tokens in it, that of the prefix not among them.
        num_bytes: Size of the file.
        header_checksum: CRC-32 of the file's beginning.
        index_checksum: CRC-32 of offsets, digests and checksums.
        prefix: Name of the shard that holds what all its texts begin with.
        prefix_ids: If it is such a shard: the token ids of its one text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ShardName
    num_texts: int
    num_tokens: int
    num_bytes: int
    header_checksum: int
    index_checksum: int
    prefix: ShardName | None = None
    prefix_ids: list[int] | None = None

    def write(self, folder: Path) -> None:
        """Say beside the shard that it is finished."""
        write_json(folder / entry_name(self.name), self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path, name: str) -> "Entry | None":
        """Of a shard that is finished, whole, and not yet in the manifest."""
        try:
            entry = cls.model_validate(parse_json((folder / entry_name(name)).read_bytes()))
        except (FileNotFoundError, ValueError):  # not yet there, or damaged: read anew
            return None
        return entry if entry.is_whole(folder) else None

    def is_whole(self, folder: Path) -> bool:
        """Whether the file is there and has its size."""
        file = folder / self.name
        return file.is_file() and file.stat().st_size == self.num_bytes


class Manifest(BaseModel):
    """All that is finished.

    Args:
        format: Version of the layout.
        source: Where the source came from, for the reader; its fingerprint decides.
        key: Whose states these are.
        shards: Finished shards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = FORMAT
    source: str | None
    key: Key
    shards: list[Entry] = []

    def write(self, folder: Path) -> None:
        """Replace the one in the folder at once."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"), indent=1)

    @classmethod
    def parse(cls, text: str | bytes, *, location: str) -> "Manifest":
        """From the text of the file.

        Raises:
            UserError: If it is damaged or of another version.
        """
        again = "delete the folder and extract again, or use the version that wrote it"
        try:
            found = parse_json(text)
            version = found["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{location}/{MANIFEST} is damaged ({error}); {again}") from None
        if version != FORMAT:
            raise UserError(f"{location} has format {version}; this version reads format {FORMAT}: {again}")
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            raise UserError(f"{location}/{MANIFEST} is damaged ({error.errors()[0]['msg']}); {again}") from None


def entry_name(shard: str) -> str:
    """File that says that a shard is finished."""
    return f"{shard.removesuffix('.safetensors')}.json"
