"""Which text goes into which shard: the same for any number of processes, and for one that goes on after a kill."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from llm_modules.checksums import parse_json, write_json
from llm_modules.features import Text
from llm_modules.prefix import common_prefix
from llm_modules.store.key import text_digest, texts_digest
from llm_modules.store.manifest import Entry, ShardName

PLAN = "plan.json"
SHARD_BYTES = 64 * 2**20  # what a kill may lose: a minute of reading on a small machine


class Planned(BaseModel):
    """A shard to be.

    Args:
        name: Of its file.
        num_texts: How many of the texts, in the order of the plan.
        num_tokens: Tokens to read for it, without those of the prefix.
        prefix: Name of the shard that holds what its texts begin with.
        prefix_ids: If it is such a shard: its one text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ShardName
    num_texts: int
    num_tokens: int
    prefix: ShardName | None = None
    prefix_ids: list[int] | None = None


class Plan(BaseModel):
    """What is still to be read, prefixes first.

    Args:
        texts: Digest of the texts that are missing.
        prefix: Token ids that all of them begin with.
        shards: To write.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: str
    prefix: list[int]
    shards: list[Planned]

    @classmethod
    def of(
        cls, texts: Sequence[Text], *, lost: Sequence[Entry], known: Sequence[Entry], bytes_per_token: int
    ) -> "Plan":
        """Cut the missing texts into shards of some `SHARD_BYTES`.

        Args:
            texts: That are missing, in order of length.
            lost: Shards with a prefix whose file is gone.
            known: Other shards with a prefix.
            bytes_per_token: What a token takes.
        """
        prefixes = [list(entry.prefix_ids or []) for entry in lost]
        usable = [list(entry.prefix_ids or []) for entry in known] + prefixes
        prefix = _prefix(texts, usable)
        if prefix and prefix not in usable:
            prefixes.append(prefix)
        shards = [_planned_prefix(ids) for ids in prefixes]
        shards += _cut(texts, prefix, most=max(1, SHARD_BYTES // bytes_per_token))
        return cls(texts=texts_digest(texts), prefix=prefix, shards=shards)

    @classmethod
    def read(cls, folder: Path) -> "Plan | None":
        """The one that an extraction left unfinished."""
        try:
            return cls.model_validate(parse_json((folder / PLAN).read_bytes()))
        except (FileNotFoundError, ValueError):  # none, or damaged: planned anew
            return None

    def agrees_with(self, other: "Plan") -> bool:
        """Whether both read the same texts into the same shards; a prefix may be there by now."""
        mine, others = ([s for s in plan.shards if s.prefix_ids is None] for plan in (self, other))
        return (self.texts, self.prefix, mine) == (other.texts, other.prefix, others)

    def write(self, folder: Path) -> None:
        """For other processes, and for after a kill."""
        write_json(folder / PLAN, self.model_dump(mode="json"), indent=1)

    def unfinished(self, folder: Path) -> list[Planned]:
        """Shards that are not yet whole."""
        return [planned for planned in self.shards if Entry.read(folder, planned.name) is None]

    def with_texts(self, texts: Sequence[Text]) -> Iterator[tuple[Planned, list[Text]]]:
        """Each shard that is no prefix, with its part of the missing texts."""
        start = 0
        for planned in self.shards:
            if planned.prefix_ids is None:
                yield planned, list(texts[start : start + planned.num_texts])
                start += planned.num_texts


def _prefix(texts: Sequence[Text], usable: Sequence[list[int]]) -> list[int]:
    """What all texts begin with: a prefix that is stored already, or the longest there is."""
    if not texts:
        return []
    length = common_prefix(texts) if len(texts) > 1 else len(texts[0]) - 1
    shared = list(texts[0][:length])
    stored = [ids for ids in usable if shared[: len(ids)] == ids]
    return max(stored, key=len) if stored else shared if len(texts) > 1 else []


def _planned_prefix(ids: list[int]) -> Planned:
    name = f"prefix-{text_digest(ids).hex()[:16]}.safetensors"
    return Planned(name=name, num_texts=1, num_tokens=len(ids), prefix_ids=ids)


def _cut(texts: Sequence[Text], prefix: list[int], *, most: int) -> list[Planned]:
    """Consecutive texts of at most `most` tokens together, at least one."""
    groups: list[list[Text]] = []
    num_tokens = 0
    for text in texts:
        own = len(text) - len(prefix)
        if not groups or num_tokens + own > most:
            groups.append([])
            num_tokens = 0
        groups[-1].append(text)
        num_tokens += own
    name = _planned_prefix(prefix).name if prefix else None
    return [
        Planned(
            name=f"shard-{texts_digest(group)}.safetensors",
            num_texts=len(group),
            num_tokens=sum(len(text) - len(prefix) for text in group),
            prefix=name,
        )
        for group in groups
    ]
