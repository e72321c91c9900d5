"""Whatever writes: a pair, or the source by itself; answers of one speaker are written side by side."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache

from llm_modules.knowledge import CombinedCache
from llm_modules.modeling import CombinedModel
from llm_modules.serving.columns import Columns
from llm_modules.serving.together import Part, Together, form_of
from llm_modules.shared_reading import SharedReading
from llm_modules.source import Source


@dataclass
class Rows:
    """What answers that are written side by side remember.

    Args:
        cache: What the model takes.
        written: Its columns that a token adds to.
        prompts: Its columns that stand for the prompts alone (`prompt` visibility).
    """

    cache: Cache
    written: Columns
    prompts: Columns | None = None

    def __len__(self) -> int:
        return self.written.mask.shape[0]

    @property
    def can_join(self) -> bool:
        """Whether other rows of the same speaker can join."""
        return all(columns.can_join for columns in self._parts)

    def join_(self, other: "Rows") -> None:
        """Take in the rows of another, below these."""
        for columns, coming in zip(self._parts, other._parts, strict=True):
            columns.join_(coming)

    def keep_(self, rows: Sequence[int]) -> None:
        """Let the other rows go."""
        for columns in self._parts:
            columns.keep_(rows)

    def repeat_(self, times: int) -> None:
        """Each row so many times."""
        for columns in self._parts:
            columns.repeat_(times)

    @property
    def _parts(self) -> list[Columns]:
        return [self.written] if self.prompts is None else [self.written, self.prompts]


class Speaker(Protocol):
    """What the engine asks of whatever writes.

    Args:
        vocab_size: Words it knows.
        form: Pairs of one form are stepped together (`SpeakersTogether`); all others are a form of their own.
        reads: What it needs of a prompt; prompts of speakers that need the same may be read side by side.
    """

    vocab_size: int
    form: Hashable
    reads: Hashable

    def read_together(self, prompts: Iterable[Sequence[int]]) -> None:
        """Read what is begun next, and others beside it (`SharedReading.read_together`)."""

    def begin(self, prompt_ids: Sequence[int]) -> tuple[Tensor, Rows]:
        """Read a prompt: logits of the first token `[1, V]`, and what the answer goes on from."""

    def step(self, tokens: Tensor, rows: Rows) -> Tensor:
        """Take the last token of each row `[rows]`; logits of the next `[rows, V]`. Extends the rows in place."""

    def check_room(self, prompt_len: int, response_len: int) -> None:
        """Refuse a prompt and an answer that do not fit."""

    def room_left(self, prompt_len: int) -> int | None:
        """Most tokens an answer may have; `None` where there is no end."""


class PairSpeaker:
    """A pair; what the source says about its prompts is shared.

    Args:
        model: The pair, in eval mode.
        shared: Of its source.
    """

    def __init__(self, model: CombinedModel, shared: SharedReading):
        self.model, self._shared = model, shared
        self.vocab_size = model.config.vocab_size
        # once, for several rows: laying it out anew whenever one answer becomes two costs more than a lone one gains
        model.fold_head_(num_rows=2)
        self.part = Part(model)
        self.form: Hashable = form_of(model.config) or self
        self.reads: Hashable = (shared, *model.config.taps)

    def read_together(self, prompts: Iterable[Sequence[int]]) -> None:
        """As [`Speaker.read_together`]."""
        self._shared.read_together(prompts, self.model.config.taps)

    @torch.no_grad()
    def begin(self, prompt_ids: Sequence[int]) -> tuple[Tensor, Rows]:
        """As [`Speaker.begin`]."""
        given = self._shared.begin(self.model, prompt_ids)
        logits = self.model(**given, use_cache=True, logits_to_keep=1).logits[:, -1]
        cache: CombinedCache = given["past_key_values"]
        own, bridge, prompts = cache.self_attention_cache, cache.cross_attention_cache, cache.prompt_mask
        mask = torch.ones(1, own.get_seq_length(), dtype=torch.long, device=logits.device)
        if prompts is None:  # `causal` visibility: a token adds to all of them
            return logits, Rows(cache, Columns.of([own, bridge, cache.source_cache], mask))
        return logits, Rows(cache, Columns.of([own], mask), Columns.of([bridge], prompts))

    @torch.no_grad()
    def step(self, tokens: Tensor, rows: Rows) -> Tensor:
        """As [`Speaker.step`]."""
        return self.model(**_inputs(tokens, rows)).logits[:, -1]

    def check_room(self, prompt_len: int, response_len: int) -> None:
        """As [`Speaker.check_room`]."""
        self.model.check_room(prompt_len, response_len)

    def room_left(self, prompt_len: int) -> int | None:
        """As [`Speaker.room_left`]."""
        return self.model.room_left(prompt_len)


class SpeakersTogether:
    """Pairs of one form, in one step for all their answers.

    Args:
        speakers: Two or more; rows lie speaker by speaker, in this order.
    """

    def __init__(self, speakers: Sequence[PairSpeaker]):
        self.speakers = list(speakers)
        self._together = Together([speaker.part for speaker in speakers])

    @torch.no_grad()
    def step(self, tokens: Tensor, rows: Rows, *, counts: Sequence[int]) -> Tensor:
        """As [`Speaker.step`], for so many rows of each speaker."""
        return self._together.step(counts, **_inputs(tokens, rows))


def _inputs(tokens: Tensor, rows: Rows) -> dict[str, Any]:
    """Of a pair's forward over the last token of each row; makes room for it."""
    rows.written.add_column_()
    if rows.prompts is not None:
        # columns are those of the generator, and every answer stands after the longest prompt
        cache, prompts = rows.cache, rows.prompts.mask
        cache.prompt_mask, cache.window_mask, cache.num_left_out = prompts, None, prompts.shape[1]
    return {
        "input_ids": tokens[:, None], "attention_mask": rows.written.mask, "past_key_values": rows.cache,
        "use_cache": True,
    }  # fmt: skip


class SourceSpeaker:
    """A language model by itself: the source of the modules, or a generator that was trained alone.

    Args:
        shared: Of the source, which also serves the modules on it.
    """

    def __init__(self, shared: SharedReading):
        self._shared = shared
        self._source: Source = shared.source
        config = self._source.config.get_text_config()
        self._last, self.vocab_size = config.num_hidden_layers, config.vocab_size
        self.form: Hashable = self  # a batch by itself
        self.reads: Hashable = (shared, self._last)

    def read_together(self, prompts: Iterable[Sequence[int]]) -> None:
        """As [`Speaker.read_together`]."""
        self._shared.read_together(prompts, [self._last])

    @torch.no_grad()
    def begin(self, prompt_ids: Sequence[int]) -> tuple[Tensor, Rows]:
        """As [`Speaker.begin`]."""
        final, cache = self._shared.begin_source(prompt_ids)
        mask = torch.ones(1, len(prompt_ids), dtype=torch.long, device=final.device)
        return self._logits(final), Rows(cache, Columns.of([cache], mask))

    @torch.no_grad()
    def step(self, tokens: Tensor, rows: Rows) -> Tensor:
        """As [`Speaker.step`]."""
        rows.written.add_column_()
        states = self._source.read(
            tokens[:, None], attention_mask=rows.written.mask, taps=[self._last], cache=rows.cache
        )
        return self._logits(states[:, -1, -1])

    def check_room(self, prompt_len: int, response_len: int) -> None:
        """As [`Speaker.check_room`]."""
        self._source.check_length(prompt_len + response_len)

    def room_left(self, prompt_len: int) -> int | None:
        """As [`Speaker.room_left`]."""
        return self._source.room_left(prompt_len)

    def _logits(self, states: Tensor) -> Tensor:
        return self._source.readout(states).logits()
