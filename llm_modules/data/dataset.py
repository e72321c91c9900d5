"""Turn conversations into examples, and examples into padded batches."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm_modules.data.records import Conversation, response_turns
from llm_modules.data.templates import Example, encode
from llm_modules.errors import UserError
from llm_modules.loss import IGNORED

LossOn = Literal["response", "all"]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many examples were kept, and how many were left out for which reason."""

    kept: int
    too_long: int
    longest: int
    empty: int
    max_length: int
    cut: int = 0
    cut_to: int | None = None

    @property
    def total(self) -> int:
        """All examples that were offered."""
        return self.kept + self.too_long + self.empty

    def __str__(self) -> str:
        line = f"kept {self.kept:,} of {self.total:,} examples"
        reasons = []
        if self.too_long:
            reasons.append(
                f"{self.too_long:,} longer than max_length={self.max_length} tokens (longest {self.longest})"
            )
        if self.empty:
            reasons.append(f"{self.empty:,} whose response has no token to learn")
        if reasons:
            line = f"{line}; left out {self.too_long + self.empty:,}: {', '.join(reasons)}"
        return f"{line}; cut {self.cut:,} to {self.cut_to} tokens" if self.cut else line


def prepare(
    conversations: Iterable[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    loss_on: LossOn = "response",
    vocab_size: int,
    cut_to: int | None = None,
    report: Callable[[str], object] = print,
) -> tuple[list[Example], LeftOut]:
    """Encode every assistant turn as an example; leave out, and count, what cannot be trained on.

    Args:
        conversations: What `read_conversations` gives.
        tokenizer: The source's, its chat template the form to train (`templates.with_template`).
        max_length: Longest prompt and response together, in tokens.
        loss_on: Where loss will be taken; with `all`, an example whose response is empty still trains on its prompt.
        vocab_size: Rows in the source's embedding table.
        cut_to: Cut longer examples to so many tokens, and count them, as the published code does. A prompt that leaves
            no response then counts as too long. Nothing is ever cut otherwise.
        report: Receives the one line that says what was kept.

    Returns:
        The examples that are kept, and the counts.

    Raises:
        UserError: No example is left, or the tokenizer gives an id that the source does not have.
    """
    examples: list[Example] = []
    too_long = longest = empty = cut = 0
    for conversation in conversations:
        for turns in response_turns(conversation):
            example = encode(turns, tokenizer)
            if len(example) > max_length or (cut_to is not None and len(example.prompt_ids) >= cut_to):
                too_long += 1
                longest = max(longest, len(example))
            elif loss_on == "response" and len(example.response_ids) == 1:  # only the end-of-sequence token
                empty += 1
            else:
                check_ids(example.input_ids, tokenizer, vocab_size=vocab_size)
                if cut_to is not None and len(example) > cut_to:
                    cut += 1
                    example = replace(example, response_ids=example.response_ids[: cut_to - len(example.prompt_ids)])
                examples.append(example)
    left_out = LeftOut(len(examples), too_long, longest, empty, max_length, cut, cut_to)
    report(str(left_out))
    if not examples:
        raise UserError(f"no trainable token after masking: {left_out}; raise max_length or check the data")
    return examples, left_out


def check_ids(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> None:
    """Refuse ids beyond the source's embedding table; a table that is longer than the vocabulary is fine."""
    largest = max(ids, default=0)
    if largest >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"token {token!r} has id {largest}, and the source's vocabulary ends at {vocab_size - 1}; "
            "use the source's own tokenizer, or remove the tokens that were added to it"
        )


def padding_id(tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> int:
    """Choose an id to pad with that the source has: the tokenizer's own, or the end-of-sequence token."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token_id for token_id in candidates if token_id is not None and token_id < vocab_size)


def split(items: Sequence[Item], validation_fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Divide into training and validation, by seed; both keep the order of `items`.

    Split conversations rather than examples where a conversation has several assistant turns: the first turn's answer
    is part of the second turn's prompt.

    Args:
        items: What to divide.
        validation_fraction: Share for validation, at least one item unless it is 0.
        seed: The same seed gives the same split.

    Raises:
        UserError: The share is not in [0, 1), or leaves nothing to train on.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(f"validation_fraction={validation_fraction} must be at least 0 and less than 1")
    num_validation = max(1, round(len(items) * validation_fraction)) if validation_fraction else 0
    if num_validation >= len(items):
        raise UserError(
            f"validation_fraction={validation_fraction} of {len(items)} leaves nothing to train on; "
            "give more data or validation_fraction=0"
        )
    chosen = set(random.Random(seed).sample(range(len(items)), num_validation))
    training = [item for index, item in enumerate(items) if index not in chosen]
    validation = [item for index, item in enumerate(items) if index in chosen]
    return training, validation


@dataclass(frozen=True, slots=True)
class Collator:
    """Pad examples on the right to the longest of the batch.

    Calling it with `batch` examples, the longest of `length` tokens, gives

    - `input_ids`, `attention_mask`: int64 `[batch, length]`;
    - `labels`: int64 `[batch, length]`, `IGNORED` where no loss is taken;
    - `prompt_mask`: bool `[batch, length]`, True on prompt tokens, one prefix per row;
    - if the examples carry knowledge: `knowledge_states` `[batch, source_len, taps, d_source]` and `knowledge_mask`,
      bool `[batch, source_len]`, True where there is a state.

    Attributes:
        pad_token_id: Any id that the source has; what it is makes no difference to a result.
        loss_on: `response`, or `all` as published (the prompt too).
    """

    pad_token_id: int
    loss_on: LossOn = "response"

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Make a batch.

        Raises:
            UserError: No token of the batch carries loss.
        """
        shape = (len(examples), max(map(len, examples)))
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        prompt_mask = torch.zeros(shape, dtype=torch.bool)
        for row, example in enumerate(examples):
            length, prompt_length = len(example), len(example.prompt_ids)
            first_label = prompt_length if self.loss_on == "response" else 0
            input_ids[row, :length] = torch.tensor(example.input_ids)
            attention_mask[row, :length] = 1
            labels[row, first_label:length] = input_ids[row, first_label:length]
            prompt_mask[row, :prompt_length] = True
        if not (labels[:, 1:] != IGNORED).any():  # the first token is never predicted
            raise UserError(f"no trainable token after masking with loss_on={self.loss_on!r}; check the responses")
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "prompt_mask": prompt_mask,
        }
        return batch | _pad_knowledge([example.knowledge for example in examples])


def _pad_knowledge(knowledge: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Stack `[source_len, taps, d_source]` of each example, zeros on the right; nothing if no example has any."""
    present = [states for states in knowledge if states is not None]
    if not present:
        return {}
    if len(present) < len(knowledge):
        raise ValueError(f"{len(knowledge) - len(present)} of {len(knowledge)} examples lack knowledge; read them too")
    source_len = max(states.shape[0] for states in present)
    padded = present[0].new_zeros(len(present), source_len, *present[0].shape[1:])
    mask = torch.zeros(len(present), source_len, dtype=torch.bool)
    for row, states in enumerate(present):
        padded[row, : states.shape[0]] = states
        mask[row, : states.shape[0]] = True
    return {"knowledge_states": padded, "knowledge_mask": mask}
