"""Prompts and beginnings read before are not read again, whichever module asks: one source serves them all."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from llm_modules.errors import UserError
from llm_modules.growing import beginning_of, growing_cache
from llm_modules.knowledge import CombinedCache, Knowledge
from llm_modules.modeling import CombinedModel
from llm_modules.prefix import num_shared
from llm_modules.source import Source

MAX_TOKENS = 32_768  # kept; what they take is printed by `nbytes`


@dataclass
class _Reading:
    """What the source said about a text: states `[length, taps, D]`, and its own keys and values up to the last tap."""

    states: Tensor
    cache: DynamicCache
    taps: tuple[int, ...]

    def states_of(self, taps: Iterable[int], length: int | None = None) -> Tensor:
        """Of some taps, `[1, length, taps, D]`; of all tokens or of the first so many."""
        wanted = [self.taps.index(tap) for tap in taps]
        states = self.states[None, :length]
        return states if wanted == list(range(len(self.taps))) else states[:, :, wanted]  # all of them: no copy


class SharedReading:
    """What one source said about the prompts of late: the same prompt, or the same beginning, is read once.

    A system prompt, a document, the turns so far of a conversation: what follows them is all that the source has to
    read, and every module on this source takes what it needs of it. (An adapter inside the source could not: it changes
    the states of the beginning.) Texts that were not asked for longest are forgotten first.

    A text is read as far up the source as whoever asks needs it, and again when somebody needs a higher tap: no module
    pays for another's taps.

    Args:
        source: What reads.
        max_tokens: Most tokens of texts to keep.
    """

    def __init__(self, source: Source, *, max_tokens: int = MAX_TOKENS):
        self.source, self.max_tokens = source, max_tokens
        self.num_read = 0  # tokens that the source read since
        self._wanted: set[int] = set()  # taps, by anybody so far
        self._known: OrderedDict[tuple[int, ...], _Reading] = OrderedDict()

    def begin(self, model: CombinedModel, prompt_ids: Sequence[int]) -> dict[str, Any]:
        """Arguments for `model.generate` that continue a prompt without reading what is known of it.

        Args:
            model: A pair on this source, not `bidirectional`.
            prompt_ids: Its prompt.

        Raises:
            UserError: For a pair on another source, or one whose source reads all anew for each token.
        """
        if model.source.fingerprint != self.source.fingerprint:
            raise UserError(
                f"this model reads {model.source.source_id}, and what is shared here is what {self.source.source_id} "
                "said; share it among models of one source"
            )
        if model.config.visibility == "bidirectional":
            raise UserError(
                "visibility='bidirectional' reads the whole text anew for each token; nothing can be shared"
            )
        reading = self._read(tuple(prompt_ids), model.config.taps)
        states = reading.states_of(model.config.taps).to(model.dtype)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        cache = CombinedCache(model.config)
        if cache.source_cache is not None:
            cache.source_cache = copy.deepcopy(reading.cache)  # it will go on; the text's own must not
        ids = torch.tensor([list(prompt_ids)], device=states.device)
        return {
            "input_ids": ids, "attention_mask": torch.ones_like(ids), "knowledge": Knowledge(states, mask),
            "past_key_values": cache,
        }  # fmt: skip

    def begin_source(self, prompt_ids: Sequence[int]) -> tuple[Tensor, DynamicCache]:
        """For the source to answer itself: its final state `[1, D]` at a prompt's end, and a cache to go on with."""
        last = self.source.config.get_text_config().num_hidden_layers
        reading = self._read(tuple(prompt_ids), [last])
        return reading.states_of([last])[:, -1, 0], copy.deepcopy(reading.cache)

    @property
    def nbytes(self) -> int:
        """What is kept takes."""
        caches = (layer for one in self._known.values() for layer in one.cache.layers if layer.is_initialized)
        of_caches = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches)
        return of_caches + sum(one.states.nbytes for one in self._known.values())

    def _read(self, ids: tuple[int, ...], taps: Iterable[int]) -> _Reading:
        self._wanted.update(taps)
        known = self._known.get(ids)
        if known is not None and set(taps) <= set(known.taps):
            self._known.move_to_end(ids)
            return known
        usable = [] if known else [text for text, reading in self._known.items() if set(taps) <= set(reading.taps)]
        text = max(usable, key=lambda one: num_shared(one, ids), default=())
        shared = num_shared(text, ids)
        if shared < len(text) and not all(layer.is_croppable for layer in self._known[text].cache.layers):
            shared = 0  # keys and values of a sliding window cannot be wound back
        if shared:
            self._known.move_to_end(text)
        begun = self._beginning(text, shared, top=max(taps)) if shared else self._nothing(ids, top=max(taps))
        if shared < len(ids):
            new = torch.tensor([ids[shared:]], device=self.source.device)
            mask = torch.ones(1, len(ids), dtype=torch.long, device=self.source.device)
            read = self.source.read(new, attention_mask=mask, taps=list(begun.taps), cache=begun.cache)[0]
            begun.states = torch.cat([begun.states, read]) if shared else read
            self.num_read += len(ids) - shared
        self._known[ids] = begun
        self._known.move_to_end(ids)
        self._forget()
        return begun

    def _nothing(self, ids: tuple[int, ...], *, top: int) -> _Reading:
        """A reading to begin with: of the taps anybody wanted up to the highest that is wanted now."""
        taps = {tap for tap in self._wanted if tap <= top}
        if ids in self._known:  # read again for another tap: what takes its place must be of use to those before, too
            taps.update(self._known[ids].taps)
        return _Reading(torch.empty(0), growing_cache(self.source.config), tuple(sorted(taps)))

    def _beginning(self, text: tuple[int, ...], shared: int, *, top: int) -> _Reading:
        """A copy of what was said about the first tokens of a known text, up to a tap."""
        reading = self._known[text]
        taps = tuple(tap for tap in reading.taps if tap <= top)
        cache = growing_cache(self.source.config)
        cache.layers[:top] = [beginning_of(layer, shared) for layer in reading.cache.layers[:top]]
        return _Reading(reading.states_of(taps, shared)[0], cache, taps)

    def _forget(self) -> None:
        while len(self._known) > 1 and sum(map(len, self._known)) > self.max_tokens:
            self._known.popitem(last=False)
