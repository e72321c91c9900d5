"""Answers do not depend on the batch they were written in, nor on how their prompts were read."""

import random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_modules import UserError, writing
from llm_modules.writing import Writing, write
from tests.conftest import VOCAB, randomise_, tiny_pair, tiny_source_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
NEW = 7


def prompts(number=9, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 11))] for _ in range(number)]


def language_model():
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(tiny_source_config()).eval()


MODELS = {
    "prompt": lambda: randomise_(tiny_pair()),
    "causal": lambda: randomise_(tiny_pair(visibility="causal")),
    "language model": language_model,
}


def alone(model, prompt, **kwargs):
    """The answer to one prompt by plain `generate`."""
    written = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=2, **kwargs)
    return TOKENIZER.decode(written[0, len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("batch_size", "round_length"), [(1, 24), (4, 3), (64, 1), (64, 5)])
def test_answers_are_those_of_single_prompts_in_the_order_given(kind, batch_size, round_length, monkeypatch):
    monkeypatch.setattr(writing, "ROUND", round_length)
    model = MODELS[kind]()
    written = write(model, prompts(), TOKENIZER, max_new_tokens=NEW, batch_size=batch_size)
    expected = [alone(model, prompt) for prompt in prompts()]
    assert written.texts == expected
    assert len(set(expected)) > 5  # else the order could be any


@pytest.mark.parametrize("batch_size", [1, 4])
def test_prefix_read_once_equals_whole_prompts(batch_size):
    model, prefix = language_model(), [5, 9, 12, 7, 30]
    read = []
    model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True)
    written = write(model, prompts(), TOKENIZER, max_new_tokens=NEW, batch_size=batch_size, prefix=prefix)
    assert sum(ids.tolist() == [prefix] for ids in read) == 1
    longest = max(map(len, prompts()))
    assert all(ids.shape[1] <= longest for ids in read[1:])  # the prefix is not read again
    assert written.texts == [alone(model, [*prefix, *prompt]) for prompt in prompts()]
    assert written.texts != [alone(model, prompt) for prompt in prompts()]


class Scripted:
    """Writes the tokens it was told, whatever it is asked."""

    device = torch.device("cpu")

    def __init__(self, *answers):
        self.config = tiny_source_config()
        self.answers = answers
        self.asked = []

    def generate(self, ids, **kwargs):
        self.asked.append((ids.tolist(), kwargs))
        rows = torch.tensor([self.answers[ids[row, -1]] for row in range(len(ids))])
        return SimpleNamespace(sequences=torch.cat([ids, rows], dim=1), past_key_values=None)


def test_answers_are_cut_at_the_end_of_sequence_and_counted():
    model = Scripted(None, None, None, [20, 21, 2, 2], [22, 2, 33, 34], [23, 24, 25, 26], [2, 2, 2, 2])
    written = write(model, [[9, 3], [4], [5], [8, 7, 6]], TOKENIZER, max_new_tokens=4)
    word = TOKENIZER.convert_ids_to_tokens
    assert written.texts == [" ".join(word(ids)) for ids in ([20, 21], [22], [23, 24, 25, 26], [])]
    assert written.num_tokens == 3 + 2 + 4 + 1


def test_prompts_are_padded_on_the_left_and_masked():
    model = Scripted(None, None, None, [20], [21], [22])
    write(model, [[9, 8, 3], [4], [7, 5]], TOKENIZER, max_new_tokens=1, temperature=0.7, do_sample=True)
    ((ids, kwargs),) = model.asked
    assert ids == [[2, 2, 4], [2, 7, 5], [9, 8, 3]]
    assert kwargs["attention_mask"].tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert kwargs["do_sample"] is True and kwargs["temperature"] == 0.7 and kwargs["max_new_tokens"] == 1


def test_finished_rows_leave_the_batch(monkeypatch):
    monkeypatch.setattr(writing, "ROUND", 2)
    model = language_model()
    sizes = []
    model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    asked = prompts(30)
    free = [alone(model, prompt) for prompt in asked]
    stop = TOKENIZER.convert_tokens_to_ids(free[0].split()[1])  # the second word of the first answer ends answers
    found = write(model, asked, TOKENIZER, max_new_tokens=NEW, stop_ids=[stop])
    assert min(sizes) < max(sizes) == 30
    word = TOKENIZER.convert_ids_to_tokens(stop)
    for text, whole in zip(found.texts, free, strict=True):
        words = whole.split()
        assert text.split() == (words[: words.index(word)] if word in words else words)


def test_prompt_with_a_token_the_model_lacks_is_refused():
    with pytest.raises(UserError, match="has id 99, and the source's vocabulary ends at 66"):
        write(language_model(), [[5, 99]], TOKENIZER, max_new_tokens=2)


def test_nothing_asked_is_nothing_written():
    assert write(language_model(), [], TOKENIZER, max_new_tokens=2).texts == []


def test_speed_is_tokens_per_second():
    assert Writing(["a"], num_tokens=12, seconds=3.0).tokens_per_s == 4.0
