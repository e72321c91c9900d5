"""What stands in training and in testing at once is found, and refused with its number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_modules.data.overlap import FILE, mark, refuse_shared_examples, refuse_trained_prompts, remember_prompts
from llm_modules.data.templates import Example
from llm_modules.errors import UserError

IDS = st.lists(st.integers(0, 200_000), min_size=1, max_size=8)


@given(IDS, IDS)
def test_rows_have_the_same_mark_if_they_are_the_same(first, second):
    assert (mark(first) == mark(second)) == (first == second)


def test_shared_examples_are_counted_and_the_first_is_named():
    training = [Example([1, 2], [3]), Example([4], [5, 6])]
    refuse_shared_examples(training, [Example([1, 2], [4]), Example([4, 5], [7])])
    with pytest.raises(UserError, match="1 of 2 validation examples are training examples too .* number 2"):
        refuse_shared_examples(training, [Example([1], [9]), Example([4], [5, 6])])


def test_a_model_knows_what_it_was_trained_on(tmp_path):
    remember_prompts(tmp_path, [Example([1, 2], [3]), Example([4], [5]), Example([1, 2], [6])])
    assert len((tmp_path / FILE).read_text().splitlines()) == 2
    refuse_trained_prompts(tmp_path, [[1], [1, 2, 3], [5]])
    with pytest.raises(UserError, match="was trained on 2 of these 3 problems .* number 1\\), .* shares none"):
        refuse_trained_prompts(tmp_path, [[4], [7], [1, 2]])


def test_a_folder_that_does_not_say_refuses_nothing(tmp_path):
    refuse_trained_prompts(tmp_path, [[1, 2]])
