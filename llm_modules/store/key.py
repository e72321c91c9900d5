"""Whose states a store holds: all that must be equal for what is stored to be what would be read."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerBase

from llm_modules.errors import UserError
from llm_modules.modeling import CombinedModel
from llm_modules.store.encoding import StoredDtype


class Key(BaseModel):
    """What a store's states depend on beside the texts themselves.

    Args:
        source_fingerprint: Of the source's stored weights.
        source_dtype: Number type the source ran in, and how its weights were held if not whole (`float32+4bit`).
        taps: Its layers.
        dtype: Number type the states are stored in.
        tokenizer: Digest of how text becomes ids.
        template: Digest of the chat template.
        reads: What of an example the source reads: its `prompt`, or `all` of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source_fingerprint: str
    source_dtype: str
    taps: list[int]
    dtype: StoredDtype
    tokenizer: str
    template: str
    reads: Literal["prompt", "all"]

    @classmethod
    def of(cls, model: CombinedModel, tokenizer: PreTrainedTokenizerBase, *, dtype: StoredDtype | None = None) -> "Key":
        """Of what this pair's source says about texts that this tokenizer makes.

        Args:
            model: The pair.
            tokenizer: With the template that is trained.
            dtype: To store in; `None` is the source's own.
        """
        computed = str(model.source.dtype).removeprefix("torch.")
        source_dtype = "+".join(filter(None, [computed, model.source.quantization]))
        return cls.model_validate(
            {
                "source_fingerprint": model.source.fingerprint,
                "source_dtype": source_dtype,
                "taps": model.config.taps,
                "dtype": dtype or computed,
                "tokenizer": _digest(_words(tokenizer)),
                "template": _digest(tokenizer.chat_template),
                "reads": "prompt" if model.config.visibility == "prompt" else "all",
            }
        )

    @property
    def digest(self) -> str:
        """One word for all of it."""
        return _digest(self.model_dump())

    def check(self, wanted: "Key", *, location: str) -> None:
        """Refuse a store of other states than these.

        Raises:
            UserError: Naming every field that differs.
        """
        has, wants = self.model_dump(), wanted.model_dump()
        differing = [f"{name}: the store has {has[name]}, this run wants {wants[name]}" for name in has if
                     has[name] != wants[name]]  # fmt: skip
        if differing:
            raise UserError(
                f"the feature store {location} holds other states than this run reads ({'; '.join(differing)}); "
                "extract into another folder, or set back what differs"
            )


def text_digest(text: Sequence[int]) -> bytes:
    """16 bytes that stand for the token ids of a text."""
    return hashlib.blake2b(array("q", text).tobytes(), digest_size=16).digest()


def texts_digest(texts: Iterable[Sequence[int]]) -> str:
    """One word for many texts, whatever their order."""
    return hashlib.blake2b(b"".join(sorted(map(text_digest, texts))), digest_size=8).hexdigest()


def _words(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All that decides which ids a text becomes."""
    if not tokenizer.is_fast:
        return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map]
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in whole.items() if name not in ("truncation", "padding")}  # set by calls


def _digest(fields: Any) -> str:
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
