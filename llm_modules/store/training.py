"""Lend a store to training: opened or filled before, and read a batch at a time."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm_modules.data.templates import Example
from llm_modules.errors import UserError
from llm_modules.features import Text, distinct_texts, read_text
from llm_modules.files import cache_folder
from llm_modules.modeling import CombinedModel
from llm_modules.processes import agree, num_processes, process_index, wait_for_all
from llm_modules.store.encoding import StoredDtype
from llm_modules.store.extraction import Extraction
from llm_modules.store.key import Key
from llm_modules.store.locks import after_other_runs
from llm_modules.store.manifest import Manifest
from llm_modules.store.reader import FeatureStore


@dataclass(frozen=True, slots=True)
class StoreCollator:
    """Batches as `data.dataset.Collator` makes them, their knowledge taken from a store.

    Attributes:
        collate: Pads.
        store: Holds what the source says about every example.
        visibility: Of the pair, which says what of an example the source reads.
    """

    collate: Callable[[Sequence[Example]], dict[str, Tensor]]
    store: FeatureStore
    visibility: str

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Make a batch.

        Raises:
            UserError: If a shard is gone or damaged.
        """
        knowledge = self.store.knowledge([read_text(example, self.visibility) for example in examples])
        pairs = zip(examples, knowledge, strict=True)
        return self.collate([replace(example, knowledge=states) for example, states in pairs])


def default_folder(key: Key) -> Path:
    """Where the store of such states lies if nobody says otherwise."""
    return cache_folder() / "features" / key.digest


def store_for(
    model: CombinedModel, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, features: str,
    dtype: StoredDtype | None,
) -> FeatureStore:  # fmt: skip
    """The store that training reads: the one named, or with `auto` the cache's, filled first.

    Args:
        model: Whose source's states are wanted.
        examples: All that training and validation will ask for.
        tokenizer: With the template that is trained.
        features: `auto`, a folder, or a URL.
        dtype: To store in, or that the store must have; `None` is the source's own, or whatever the store has.

    Raises:
        UserError: If the store is another's, damaged, or lacks some of the examples.
    """
    texts = distinct_texts(examples, visibility=model.config.visibility)
    key = Key.of(model, tokenizer, dtype=dtype)
    if features == "auto":
        folder, process, num = default_folder(key), process_index(), num_processes()
        with after_other_runs(folder, process=process, num_processes=num):
            Extraction(folder, source=model.source, key=key, texts=texts, process=process, num_processes=num).run()
        wait_for_all()
        return _alike(FeatureStore(folder))
    store = FeatureStore(features)
    store.check(key if dtype else _stored_as(store.manifest, key))
    _check_complete(store, texts)
    return _alike(store)


def _alike(store: FeatureStore) -> FeatureStore:
    """The same store in every process, which may have opened it on hosts of their own."""
    shards = sorted((entry.name, entry.header_checksum, entry.index_checksum) for entry in store.manifest.shards)
    agree({"feature store": f"{len(store):,} texts, {zlib.crc32(repr(shards).encode()):08x}"})
    return store


def _stored_as(manifest: Manifest, key: Key) -> Key:
    """The key in the dtype that a store has: any will do where none is asked for."""
    return key.model_copy(update={"dtype": manifest.key.dtype})


def _check_complete(store: FeatureStore, texts: Sequence[Text]) -> None:
    missing = sum(text not in store for text in texts)
    if missing:
        raise UserError(
            f"{missing:,} of {len(texts):,} texts are not in the feature store {store.location}; add them with "
            f"`llm-modules extract CONFIG --out {store.location}`, which reads only these"
        )
    others = len(store) - len(texts)
    print(f"knowledge from {store.location}: {len(texts):,} texts" + f", {others:,} others unused" * (others > 0))
