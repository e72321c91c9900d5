"""Prompts and beginnings read before are not read again, whichever module asks: one source serves them all."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from llm_modules.errors import UserError
from llm_modules.growing import GrowingLayer, beginning_of, growing_cache
from llm_modules.knowledge import CombinedCache, Knowledge
from llm_modules.modeling import CombinedModel
from llm_modules.prefix import num_shared
from llm_modules.source import Source

MAX_TOKENS = 32_768  # kept; what they take is printed by `nbytes`
SIDE_BY_SIDE = 512  # tokens read at once for several, at most: nobody waits longer than for one prompt of that length
AGAIN = 16  # known tokens of a text, at most, that are read again for the sake of reading it beside others
PADDING = 1.25  # times the tokens that are to be read, at most


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
        self._most = min(SIDE_BY_SIDE, max_tokens)  # more would be forgotten before it is used
        self._pads = all(type(layer) is GrowingLayer for layer in growing_cache(source.config).layers)

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

    def read_together(self, prompts: Iterable[Sequence[int]], taps: Sequence[int]) -> None:
        """Read the prompt that is begun next, and beside it those that wait, where that is faster than one by one.

        A short prompt leaves a processor idle: eight of fifty tokens take little more than half the time side by side.
        Left for later are prompts of quite another length, what goes beyond 512 tokens, and prompts that share more
        with a known text, or with another of these, than all of them share: a long beginning is not read twice.

        Args:
            prompts: The next one, then the others.
            taps: What whoever asks needs of each.
        """
        first, *others = dict.fromkeys(map(tuple, prompts))
        if self._knows(first, taps):
            return
        known, shared = self._nearest(first, taps)
        texts, most = [first], shared
        for ids in others if self._pads else ():
            all_share = min(shared, num_shared(known, ids))
            lengths = [len(one) - all_share for one in (*texts, ids)]
            padded = len(lengths) * max(lengths)
            if ids in self._known or padded > min(self._most, PADDING * sum(lengths)):
                continue
            it_shares = max(self._nearest(ids, taps)[1], *(num_shared(one, ids) for one in texts))
            if max(most, it_shares) - all_share <= AGAIN:
                texts.append(ids)
                shared, most = all_share, max(most, it_shares)
        self._read_new(texts, known, shared, taps)

    @property
    def nbytes(self) -> int:
        """What is kept takes."""
        caches = (layer for one in self._known.values() for layer in one.cache.layers if layer.is_initialized)
        of_caches = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches)
        return of_caches + sum(one.states.nbytes for one in self._known.values())

    def _read(self, ids: tuple[int, ...], taps: Sequence[int]) -> _Reading:
        if not self._knows(ids, taps):
            self._read_new([ids], *self._nearest(ids, taps), taps)
        self._known.move_to_end(ids)
        return self._known[ids]

    def _knows(self, ids: tuple[int, ...], taps: Iterable[int]) -> bool:
        return ids in self._known and set(taps) <= set(self._known[ids].taps)

    def _nearest(self, ids: tuple[int, ...], taps: Iterable[int]) -> tuple[tuple[int, ...], int]:
        """The known text with the longest beginning of these, and of how many tokens that is."""
        if ids in self._known:  # but not as far up
            return (), 0
        usable = [text for text, reading in self._known.items() if set(taps) <= set(reading.taps)]
        text = max(usable, key=lambda one: num_shared(one, ids), default=())
        shared = num_shared(text, ids)
        if shared < len(text) and not all(layer.is_croppable for layer in self._known[text].cache.layers):
            return (), 0  # keys and values of a sliding window cannot be wound back
        return text, shared

    def _read_new(
        self, texts: Sequence[tuple[int, ...]], known: tuple[int, ...], shared: int, taps: Sequence[int]
    ) -> None:
        """Read and keep texts that share so many tokens with a known one; padding is behind, where nothing sees it."""
        self._wanted.update(taps)
        if shared:
            self._known.move_to_end(known)
        begun = self._beginning(known, shared, top=max(taps)) if shared else self._nothing(texts[0], top=max(taps))
        new = pad_sequence([torch.tensor(ids[shared:], dtype=torch.long) for ids in texts], batch_first=True)
        if len(texts) > 1:
            begun.cache.batch_repeat_interleave(len(texts))
        said = begun.states[None, :0]
        if new.shape[1]:
            mask = torch.ones(len(texts), shared + new.shape[1], dtype=torch.long, device=self.source.device)
            new = new.to(self.source.device)
            said = self.source.read(new, attention_mask=mask, taps=list(begun.taps), cache=begun.cache)
            self.num_read += sum(len(ids) - shared for ids in texts)
        for row, ids in enumerate(texts):
            own = said[row, : len(ids) - shared]
            states = torch.cat([begun.states, own]) if shared else own.clone()
            cache = begun.cache if len(texts) == 1 else self._row_of(begun.cache, row, len(ids))
            self._known[ids] = _Reading(states, cache, begun.taps)
            self._known.move_to_end(ids)
        self._forget()

    def _row_of(self, cache: DynamicCache, row: int, length: int) -> DynamicCache:
        """A copy of the first tokens of one row."""
        own = growing_cache(self.source.config)
        own.layers = [layer.beginning(length, rows=slice(row, row + 1)) for layer in cache.layers]
        return own

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
