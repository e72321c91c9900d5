"""Find what stands in training and in testing at once: right answers to it show memory, not skill."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from llm_modules.checksums import seal
from llm_modules.data.templates import Example
from llm_modules.errors import UserError
from llm_modules.files import write_text

FILE = "trained_on.txt"
"""Beside a trained model: one line a training prompt, its mark in hexadecimal digits, sorted."""


def mark(ids: Sequence[int]) -> str:
    """What a row of token ids is recognised by, 16 hexadecimal digits."""
    return hashlib.blake2b(b"".join(token.to_bytes(4) for token in ids), digest_size=8).hexdigest()


def standing_in(seen: Collection[str], rows: Iterable[Sequence[int]]) -> list[int]:
    """Which rows, counted from 1, have a mark among these."""
    return [number for number, row in enumerate(rows, start=1) if mark(row) in seen]


def remember_prompts(folder: Path, examples: Iterable[Example]) -> None:
    """Write into a model's folder what it was trained on, as marks that do not give the texts away."""
    write_text(
        folder / FILE, "".join(f"{line}\n" for line in sorted({mark(example.prompt_ids) for example in examples}))
    )
    seal(folder, [FILE])


def refuse_shared_examples(training: Iterable[Example], validation: Sequence[Example]) -> None:
    """Refuse a validation file with examples of the training file, prompt and response.

    Raises:
        UserError: There are some; the message counts them.
    """
    seen = {mark(example.input_ids) for example in training}
    shared = standing_in(seen, [example.input_ids for example in validation])
    if shared:
        raise UserError(
            f"{len(shared)} of {len(validation)} validation examples are training examples too (the first is number "
            f"{shared[0]}); take them out of one of the two files"
        )


def refuse_trained_prompts(folder: Path, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse to test a model on prompts that it was trained on, where its folder says which those were.

    Args:
        folder: Of the model.
        prompts: Token ids of each, in the form the model was trained in.

    Raises:
        UserError: There are some; the message counts them.
    """
    try:
        seen = set((folder / FILE).read_text(encoding="utf-8").split())
    except FileNotFoundError:  # trained elsewhere, or not by `llm-modules train`
        return
    shared = standing_in(seen, prompts)
    if shared:
        raise UserError(
            f"{folder} was trained on {len(shared)} of these {len(prompts)} problems (the first is number "
            f"{shared[0]}), so the result would show memory, not skill; test on a file that shares none with training"
        )
