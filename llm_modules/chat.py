"""A conversation with a trained model, streamed."""

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer, set_seed

from llm_modules.data.dataset import check_ids
from llm_modules.data.templates import encode_prompt
from llm_modules.errors import UserError
from llm_modules.loading import load_trained
from llm_modules.modeling import CombinedModel
from llm_modules.shared_reading import SharedReading

HELP = "Type a question. /reset forgets the conversation, /exit leaves; Ctrl-C stops an answer."


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; the paper used temperature 0.9, top-k 100, top-p 0.98."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 100
    top_p: float = 0.98
    seed: int = 0

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


class _Stop(StoppingCriteria):
    """Ends an answer when told to."""

    def __init__(self) -> None:
        self.told = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.told, device=input_ids.device)


@dataclass
class Conversation:
    """A model, the turns so far, and how to go on.

    Args:
        model: Combined model with a source.
        tokenizer: Its chat template must be the one the model was trained in; the saved one is.
        sampling: How answers are drawn.
        system: System message before the first turn.
    """

    model: CombinedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._shared = SharedReading(self.model.source)

    @classmethod
    def load(cls, folder: Path, sampling: Sampling, *, system: str | None = None) -> "Conversation":
        """Load a trained model to talk to.

        Raises:
            UserError: If the folder holds no usable model, or no tokenizer.
        """
        model, tokenizer = load_trained(folder)
        set_seed(sampling.seed)
        return cls(model, tokenizer, sampling, system)

    def ask(self, question: str) -> Generator[str, None, None]:
        """Pieces of the answer as they are written; the turn is kept even if the reader stops half-way."""
        turns = [*self.turns, {"role": "user", "content": question}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        ids = encode_prompt([*system, *turns], self.tokenizer)
        check_ids(ids, self.tokenizer, vocab_size=self.model.config.vocab_size)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
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

        writer = Thread(target=run, name="answer", daemon=True)
        writer.start()
        pieces: list[str] = []
        try:
            for piece in streamer:
                pieces.append(piece)
                yield piece
        finally:
            stop.told = True
            writer.join()
            self.turns = [*turns, {"role": "assistant", "content": "".join(pieces)}]
        if failed:
            self.turns = turns[:-1]
            raise failed[0]

    def _arguments(self, ids: list[int]) -> dict[str, Any]:
        """The prompt for `generate`; of what the turns before had in it the source reads nothing again."""
        if self.model.config.visibility != "bidirectional":
            return self._shared.begin(self.model, ids)
        input_ids = torch.tensor([ids], device=self.model.device)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def reset(self) -> None:
        """Forget the conversation."""
        self.turns = []


def talk(conversation: Conversation) -> None:
    """The terminal loop of `llm-modules chat`."""
    print(HELP)
    while True:
        try:
            question = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if question == "/exit":
            return
        if question == "/reset":
            conversation.reset()
            print("(forgotten)")
        elif question.startswith("/"):
            print(f"{question.split()[0]} is no command. {HELP}")
        elif question:
            answer = conversation.ask(question)
            try:
                for piece in answer:
                    print(piece, end="", flush=True)
                print()
            except KeyboardInterrupt:
                answer.close()
                print(" (stopped)")
            except UserError as error:
                print(f"error: {error}")
