"""Variations of word problems keep the answer's meaning, use each number under its mark, and come from their seed."""

import random
import re
from typing import NamedTuple

import pytest

from llm_modules.tasks import marks
from llm_modules.tasks.equations import evaluate
from llm_modules.tasks.variations import MOST_NUMBERS, Variations, varied


class Told(NamedTuple):
    question: str
    response: str


PENS = Told("tom has 14 (A) red pens . he gives 5 (B) pens away . how many pens are left ?", "A-B")
STORIES = [
    PENS,
    Told("ann saw 20 (A) birds . 7 (B) birds flew away . how many birds stayed ?", "A-B"),
    Told("ben has 6 (B) marbles and 9 (A) cups . how many marbles and cups has he ?", "A+B"),
    Told("eve found 3 (B) marbles . she lost 4 (A) birds and 2 (C) cups . how many did she lose ?", "A+C"),
]


@pytest.fixture(scope="module")
def many() -> list[tuple[Told, Told]]:
    variations = Variations(STORIES)
    rng = random.Random(0)
    made = [(one, variations.of(*one, rng=rng)) for one in STORIES * 60]
    return [(one, Told(*new)) for one, new in made if new is not None]


def value(problem: Told) -> float | None:
    return evaluate(marks.fill(problem.response, marks.of(problem.question)))


def test_marks_go_by_size_in_every_variation(many):
    assert len(many) > 100
    for _, new in many:
        numbers = marks.of(new.question)
        assert list(numbers.values()) and len(numbers) <= MOST_NUMBERS
        by_name = [float(numbers[letter]) for letter in sorted(numbers)]
        assert by_name == sorted(by_name, reverse=True) and "".join(sorted(numbers)) == "ABCDEFGHIJ"[: len(numbers)]


def test_an_irrelevant_number_leaves_the_value_as_it_was(many):
    same = [(one, new) for one, new in many if new.question.endswith(one.question.rpartition(" . ")[2])]
    assert same and all(value(one) == value(new) for one, new in same)
    assert all(len(marks.of(new.question)) > len(marks.of(one.question)) for one, new in same)


def test_another_question_compares_or_adds_the_two_things_it_names(many):
    asked = [new for one, new in many if not new.question.endswith(one.question.rpartition(" . ")[2])]
    assert {"+", "-"} == {sign for new in asked for sign in new.response if sign in "+-*/"}
    for new in asked:
        story, _, question = new.question.rpartition(" . ")
        first, second = (marks.of(new.question)[letter] for letter in new.response[::2])
        assert ("more" in question or "fewer" in question) == (new.response[1] == "-")
        assert first in story and second in story and value(new) > 0


def test_every_kind_of_variation_is_made(many):
    of_pens = [new.question for one, new in many if one is PENS]
    assert any("pens and" in text or " and 14" in text for text in of_pens)
    assert any(len(text.split(" . ")) > 3 for text in of_pens)
    assert any(text.startswith("tom") and "more" in text.rpartition(" . ")[2] for text in of_pens)


def test_a_sentence_of_another_story_is_told_of_the_same_person(many):
    others = [new.question for one, new in many if one is PENS and len(new.question.split(" . ")) == 4]
    told = [text for text in others if len(marks.of(text)) == 3]
    assert told and not any(name in text for text in told for name in ("ann", "ben", "eve"))


def test_another_story_is_told_whole_of_the_same_person_or_of_its_own(many):
    texts = [new.question for one, new in many if one is PENS and {*marks.of(new.question)} == {*"ABCD"}]
    stories = [text for text in texts if "birds flew away" in text]
    assert any("ann saw" in text for text in stories) and any("tom saw" in text for text in stories)
    for text in stories:
        assert text.index("saw") < text.index("flew away") and text.index("has") < text.index("gives")


def test_what_is_counted_at_three_times_is_asked_about_two_of_them(many):
    asked = [new for _, new in many if "did eve find" in new.question]
    assert asked
    for new in asked:
        story, question = new.question.split(" . ")
        times = dict(re.findall(r"\((\w)\) marbles (.+?)(?= ,| and|$)", story))
        assert len(times) == 3 and len(marks.of(new.question)) == 3
        assert {letter for letter, time in times.items() if time in question} == {*new.response[::2]}
        assert ("more" in question) == (new.response[1] == "-") and value(new) > 0


def test_equal_seeds_give_equal_variations():
    asked = [
        [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.response}] for one in STORIES
    ]
    assert varied(asked, seed=3) == varied(asked, seed=3) != varied(asked, seed=4)
    many = [(user["content"], assistant["content"]) for user, assistant in varied(asked, seed=3, num=9)]
    assert len(asked) < len(many) == len({*many}) <= 9 * len(asked)


def test_a_question_without_a_story_has_no_variation():
    lone = Told("how many are 3 (B) and 4 (A) ?", "A+B")
    assert Variations([lone, *STORIES]).of(*lone, rng=random.Random(0)) is None


@pytest.mark.parametrize("words", ["", ".", "? ? ?", "3 (A)", "a . 2 (A) . b", "has 1 (A) things . how many ( ?"])
def test_odd_texts_are_taken_as_they_are(words):
    odd = Told(words, "A")
    for seed in range(5):
        Variations([odd, *STORIES]).of(*odd, rng=random.Random(seed))
        Variations([odd]).of(*odd, rng=random.Random(seed))
