"""A conversation with a trained model, streamed."""

import json
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer

from llm_modules.data.dataset import check_ids
from llm_modules.data.templates import encode_prompt
from llm_modules.errors import UserError
from llm_modules.files import write_bytes
from llm_modules.loading import load_trained
from llm_modules.modeling import CombinedModel
from llm_modules.settings import nearest_key
from llm_modules.shared_reading import SharedReading


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; the paper used temperature 0.9, top-k 100, top-p 0.98.

    Args:
        max_new_tokens: Most tokens of an answer.
        temperature: 0 always takes the likeliest word.
        top_k: Sample among so many likeliest words; 0 for all.
        top_p: Sample among the likeliest words with this total.
        seed: Of the random numbers.

    Raises:
        UserError: For a number outside its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 100
    top_p: float = 0.98
    seed: int = 0

    def __post_init__(self) -> None:
        for name, rule, holds in (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            ("temperature", "0 or a finite number above it", 0 <= self.temperature < float("inf")),
            ("top_k", "0 (all words) or more", self.top_k >= 0),
            ("top_p", "between 0 and 1", 0 <= self.top_p <= 1),
            ("seed", "a whole number of 64 bits", -(2**63) <= self.seed < 2**63),
        ):
            if not holds:
                raise UserError(f"{name}={getattr(self, name)} is not possible; choose {rule}")

    def as_kwargs(self) -> dict[str, Any]:
        """For transformers' `generate`."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k or None,
            "top_p": self.top_p,
        }

    def changed(self, assignments: Iterable[str]) -> "Sampling":
        """The same with some values given as `name=value`.

        Raises:
            UserError: For an unknown name, or a value that is no number or outside its range.
        """
        kinds: dict[str, Any] = {each.name: each.type for each in fields(self)}
        values: dict[str, Any] = {}
        for assignment in assignments:
            name, _, text = assignment.partition("=")
            if name not in kinds:
                raise UserError(f"{name!r} is no parameter; the nearest is {nearest_key(name, list(kinds))}")
            try:
                values[name] = kinds[name](text)
            except ValueError as error:
                kind = "whole number" if kinds[name] is int else "number"
                raise UserError(f"{name}={text!r} is no {kind}; write it as {name}={getattr(self, name)}") from error
        return replace(self, **values)

    def __str__(self) -> str:
        return " ".join(f"{each.name}={getattr(self, each.name)}" for each in fields(self))


@dataclass(frozen=True)
class Pace:
    """How fast an answer came.

    Args:
        num_tokens: Tokens written, the end of the sequence among them.
        seconds: From the question to the last token.
        first_s: From the question to the first token.
    """

    num_tokens: int
    seconds: float
    first_s: float

    def __str__(self) -> str:
        tokens = f"{self.num_tokens:,} token{'s' * (self.num_tokens != 1)}"
        return f"{tokens}, {self.num_tokens / self.seconds:.1f} tokens/s, first after {self.first_s:.1f} s"


class _Streamer(TextIteratorStreamer):
    """Hands pieces of text to another thread, and keeps when tokens came."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.start = time.perf_counter()
        self.num_tokens, self.first_s, self.last_s = 0, 0.0, 0.0

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.num_tokens += value.numel()
            self.last_s = time.perf_counter() - self.start
            self.first_s = self.first_s or self.last_s
        super().put(value)

    @property
    def pace(self) -> Pace | None:
        return Pace(self.num_tokens, self.last_s, self.first_s) if self.num_tokens else None


class _Stop(StoppingCriteria):
    """Ends an answer when told to."""

    def __init__(self) -> None:
        self.told = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.told, device=input_ids.device)


@dataclass
class Conversation:
    """A model, the turns so far, and how to go on.

    Args:
        model: A combined model with its source, or any causal language model of transformers.
        tokenizer: Its chat template must be the one the model was trained in; the saved one is.
        sampling: How answers are drawn.
        system: System message before the first turn.
        turns: User and assistant in turn.
        shared: What the source read before, for all pairs on it; left out, a new one.
        pace: Of the last answer; `None` before it, and if nothing was written.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    shared: SharedReading | None = None
    pace: Pace | None = None

    def __post_init__(self) -> None:
        if self.shared is None and isinstance(self.model, CombinedModel):
            self.shared = SharedReading(self.model.source)

    @classmethod
    def load(cls, folder: Path, sampling: Sampling, *, system: str | None = None) -> "Conversation":
        """Load a trained model to talk to.

        Raises:
            UserError: If the folder holds no usable model, or no tokenizer.
        """
        model, tokenizer = load_trained(folder)
        torch.manual_seed(sampling.seed)
        return cls(model, tokenizer, sampling, system)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The system message, if any, and the turns."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def ask(self, question: str) -> Generator[str, None, None]:
        """Pieces of the answer as they are written; the turn is kept even if the reader stops half-way."""
        asked = {"role": "user", "content": question}
        ids = encode_prompt([*self.messages, asked], self.tokenizer)
        check_ids(ids, self.tokenizer, vocab_size=self.model.config.vocab_size)
        streamer = _Streamer(self.tokenizer)
        stop, failed = _Stop(), []

        def run() -> None:
            try:
                self.model.generate(
                    **self._arguments(ids),
                    streamer=streamer,
                    stopping_criteria=[stop],
                    eos_token_id=self.tokenizer.eos_token_id,
                    pad_token_id=self.tokenizer.eos_token_id,
                    **self.sampling.as_kwargs(),
                )
            except Exception as error:  # noqa: BLE001 - carried to the reader's thread and raised there
                failed.append(error)
                streamer.end()

        self.pace = None
        writer = Thread(target=run, name="answer", daemon=True)
        writer.start()
        pieces: list[str] = []
        try:
            for piece in streamer:
                pieces.append(piece)
                yield piece
        finally:
            stop.told = True
            _wait_for(writer)
            self.pace = streamer.pace
            if not failed:
                self.turns = [*self.turns, asked, {"role": "assistant", "content": "".join(pieces)}]
        if failed:
            raise failed[0]

    def _arguments(self, ids: list[int]) -> dict[str, Any]:
        """The prompt for `generate`; of what the turns before had in it the source of a pair reads nothing again."""
        if isinstance(self.model, CombinedModel) and self.shared and self.model.config.visibility != "bidirectional":
            return self.shared.begin(self.model, ids)
        input_ids = torch.tensor([ids], device=self.model.device)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def reset(self) -> None:
        """Forget the conversation."""
        self.turns = []

    def save(self, file: Path) -> None:
        """Add the conversation to a JSONL file in the form `messages`, which `data.train_file` reads.

        Raises:
            UserError: If nothing was said yet, or the file cannot be one.
        """
        if not self.turns:
            raise UserError("there is nothing to save yet; ask something first")
        if file.suffix != ".jsonl":
            raise UserError(
                f"{str(file)!r} does not end in .jsonl, and a conversation is saved as a line of such a file"
            )
        line = json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"
        try:
            before = file.read_bytes() if file.exists() else b""
            if before and not before.endswith(b"\n"):
                before += b"\n"
            write_bytes(file, before + line.encode())
        except OSError as error:
            raise UserError(f"{file} cannot be written ({error.strerror}); choose another file") from error


def _wait_for(writer: Thread) -> None:
    """Until an answer that was told to stop has stopped; it can do so only between tokens, however often one asks."""
    while writer.is_alive():
        try:
            writer.join()
        except KeyboardInterrupt:
            continue
