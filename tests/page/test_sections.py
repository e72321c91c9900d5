"""Thought and solution are told apart while an answer streams, and no half of a tag flickers by."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.page.visits import SOLUTION, THOUGHT


@pytest.fixture(scope="module")
def page(browser, served):
    page = browser.new_page()
    page.goto(served)
    yield page
    page.close()


TAGS = [tag for part in (THOUGHT, SOLUTION) for tag in re.findall(r"<\|\w+\|>", part)]


@settings(max_examples=25)
@given(st.lists(st.sampled_from([*TAGS, "a", " ", "<", "<|", "<|end", "|>", "\n"]), max_size=12))
def test_no_part_of_a_tag_is_ever_shown_while_an_answer_streams(page, pieces):
    text = "".join(pieces)
    found = page.evaluate(
        """async (text) => {
            const { sections } = await import("/sections.js");
            const early = [...text].map((_, end) => sections(text.slice(0, end), { finished: false }));
            return [...early, sections(text, { finished: true })];
        }""",
        text,
    )
    for parts in found:
        shown = (parts["thought"] or "") + parts["solution"]
        assert not any(tag in shown for tag in TAGS)
    *early, last = found
    assert last["thinking"] is False
    if "<" not in "".join(piece for piece in pieces if piece not in TAGS):
        assert not any("<" in (parts["thought"] or "") + parts["solution"] for parts in early)


CUT = {"a <|begin_of_sol": "a", "a <|b": "a", "1 <": "1 <", "a |>": "a |>"}


@pytest.mark.parametrize(("text", "shown"), CUT.items())
def test_half_a_tag_of_an_answer_that_was_cut_is_left_out_and_a_sign_is_not(page, text, shown):
    found = page.evaluate(f"import('/sections.js').then(({{ sections }}) => sections({text!r}, {{ finished: true }}))")
    assert found == {"thought": None, "solution": shown, "thinking": False}
