"""Text that is sent is final: no half characters, and nothing of a stop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_modules.serving.wording import Wording
from tests.conftest import tiny_tokenizer

TINY = tiny_tokenizer()
LETTERS = TINY.convert_tokens_to_ids(list("abc"))


def told(tokens, tokenizer=TINY, stop=()):
    """Pieces, up to where the answer ends, and how many tokens that took."""
    wording, pieces = Wording(tokenizer, stop), []
    for count, token in enumerate(tokens, 1):
        pieces.append(wording.add(token))
        if wording.stopped:
            return pieces, count
    return [*pieces, wording.finish()], len(tokens)


@given(st.lists(st.sampled_from([0, 1, 2, *LETTERS, 60]), max_size=12))  # unknown, begin, end, letters, no token at all
def test_pieces_are_the_whole_text(tokens):
    pieces, _ = told(tokens)
    assert "".join(pieces) == TINY.decode(tokens, skip_special_tokens=True)


@given(st.lists(st.sampled_from(LETTERS), max_size=12), st.lists(st.text("abc ", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_and_nothing_of_it_is_ever_sent(tokens, stop):
    pieces, count = told(tokens, stop=stop)
    whole = TINY.decode(tokens, skip_special_tokens=True)
    places = [whole.find(text) for text in stop if text in whole]
    ended = "".join(pieces)
    assert ended == (whole[: min(places)] if places else whole) or _ended_earlier(tokens, count, stop, ended)
    assert not any(text in ended for text in stop)


def _ended_earlier(tokens, count, stop, ended):
    """A longer stop that begins earlier had not been written out when another was complete."""
    whole = TINY.decode(tokens[:count], skip_special_tokens=True)
    return ended == whole[: min(whole.find(text) for text in stop if text in whole)]


def test_what_may_begin_a_stop_is_held_back_until_it_is_known():
    wording = Wording(TINY, ["a b c"])
    a, b, c = LETTERS
    assert [wording.add(token) for token in (c, a, b, b, a)] == ["c", " ", "", "a b b", " "]
    assert wording.finish() == "a"
    assert not wording.stopped


@pytest.mark.parametrize("text", ["naïve – 東京 🙂🙂", "a\n\n  b\tc ", "<|begin_of_thought|> 2+2", "🙂"])
def test_real_text_is_spelled_as_the_tokenizer_spells_it(tokenizer, text):
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, _ = told(tokens, tokenizer)
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert not any("�" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_told_as_such(tokenizer):
    tokens = tokenizer("ok \U0001f701", add_special_tokens=False)["input_ids"][:-1]
    pieces, _ = told(tokens, tokenizer)
    assert "".join(pieces) == tokenizer.decode(tokens) and "".join(pieces).endswith("�")
