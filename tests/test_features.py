"""The source reads a training set once, and what it read is what it would read again."""

import random

import pytest
import torch

from llm_modules import features
from llm_modules.data.templates import Example
from llm_modules.features import knowledge_bytes, with_knowledge
from tests.conftest import D_SOURCE, VOCAB, tiny_pair

TAPS = [0, 2, -1]


def examples(number=14, seed=0):
    draw = random.Random(seed)
    words = lambda: [draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 12))]  # noqa: E731
    return [Example(words(), words()) for _ in range(number)]


@pytest.fixture
def rows_read(monkeypatch):
    """How many rows and tokens the source was given, batch by batch."""
    seen = []

    def spy(model):
        whole = model.source.read

        def read(ids, **kwargs):
            seen.append(tuple(ids.shape))
            return whole(ids, **kwargs)

        monkeypatch.setattr(model.source, "read", read)
        return seen

    return spy


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
@pytest.mark.parametrize("read_tokens", [1, 30, 2048])
def test_padded_batches_read_what_single_texts_read_in_the_order_given(visibility, read_tokens, monkeypatch):
    monkeypatch.setattr(features, "READ_TOKENS", read_tokens)
    model, given = tiny_pair(visibility=visibility, taps=TAPS), examples()
    found = with_knowledge(model, given)
    for before, after in zip(given, found, strict=True):
        assert (after.prompt_ids, after.response_ids) == (before.prompt_ids, before.response_ids)
        read = before.prompt_ids if visibility == "prompt" else before.input_ids
        alone = model.read(torch.tensor([read])).states[0]
        assert after.knowledge.shape == (len(read), len(TAPS), D_SOURCE)
        torch.testing.assert_close(after.knowledge, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("taps", [TAPS, [0, 1]])
def test_a_shared_beginning_is_read_once(taps, rows_read):
    model = tiny_pair(visibility="causal", taps=taps, start="published")
    given = [Example([7, 8, 9, 10, *example.prompt_ids], example.response_ids) for example in examples()]
    seen = rows_read(model)
    found = with_knowledge(model, given)
    assert seen[0][0] == 1 and seen[0][1] >= 4
    for before, after in zip(given, found, strict=True):
        alone = model.read(torch.tensor([before.input_ids])).states[0]
        torch.testing.assert_close(after.knowledge, alone, atol=1e-5, rtol=1e-5)


def test_batches_hold_no_more_tokens_than_allowed(monkeypatch, rows_read):
    monkeypatch.setattr(features, "READ_TOKENS", 24)
    model = tiny_pair(visibility="causal")
    seen = rows_read(model)
    with_knowledge(model, examples())
    assert sum(rows for rows, _ in seen) == 14
    assert all(rows * length <= 24 or rows == 1 for rows, length in seen)
    assert max(rows for rows, _ in seen) > 1


def test_equal_texts_are_read_once(rows_read):
    model = tiny_pair(visibility="prompt")
    seen = rows_read(model)
    asked = [Example([5, 6], [7]), Example([8], [9]), Example([5, 6], [10])]
    first, _, third = with_knowledge(model, asked)
    assert sum(rows for rows, _ in seen) == 2
    assert first.knowledge is third.knowledge


def test_response_is_part_of_the_text_unless_visibility_is_prompt(rows_read):
    model = tiny_pair(visibility="causal")
    seen = rows_read(model)
    with_knowledge(model, [Example([5, 6], [7]), Example([5, 6], [10])])
    assert seen == [(1, 2), (2, 1)]  # the shared prompt, then both responses


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_memory_is_counted_before_it_is_taken(visibility):
    model, given = tiny_pair(visibility=visibility, taps=TAPS), examples()
    taken = sum(example.knowledge.numel() * example.knowledge.itemsize for example in with_knowledge(model, given))
    assert knowledge_bytes(model, given) == taken


def test_knowledge_keeps_no_larger_memory_alive():
    for example in with_knowledge(tiny_pair(), examples()):
        assert example.knowledge.untyped_storage().nbytes() == example.knowledge.numel() * 4


def test_no_examples_need_no_source():
    assert with_knowledge(tiny_pair(), []) == []
