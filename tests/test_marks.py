"""Marks: numbers of a question are named by size, and what a name stands for is read from the question alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_modules.errors import UserError
from llm_modules.tasks import marks

NUMBERS = st.lists(st.decimals(0, 1000, places=1).map(lambda number: format(number, "f")), min_size=1, max_size=12)


@given(NUMBERS)
def test_a_question_tells_what_its_marks_stand_for(numbers):
    letters = marks.by_size(numbers, where="here")
    question = " and ".join(f"number{slot} pens" for slot in range(len(numbers)))
    found = marks.of(marks.put_in(question, numbers, letters, where="here"))
    assert found == dict(zip(letters, numbers, strict=True))
    by_name = [float(found[letter]) for letter in sorted(found)]
    assert by_name == sorted(by_name, reverse=True)


def test_of_equal_numbers_the_first_comes_first():
    assert marks.by_size(["3", "5", "3"], where="here") == ["B", "A", "C"]


def test_letters_in_a_row_stay_operands_of_their_own():
    assert marks.fill("AB-C", {"A": "1", "B": "2"}).split() == ["1", "2", "-", "C"]


def test_only_marks_behind_a_number_count():
    assert marks.of("A baker (B) sold 12 (A) cakes at $ 2.50 (C)") == {"A": "12", "C": "2.50"}


def test_a_slot_without_a_number_is_named():
    with pytest.raises(UserError, match="here: the question has the slot number2"):
        marks.put_in("number0 number2", ["1"], ["A"], where="here")
