"""The task `math-word-problems`: numbers in their slots, equations worked out, published files read in place."""

import csv
from pathlib import Path

import pytest

from llm_modules.errors import MissingFileError, UserError
from llm_modules.tasks import get_task

DATA = Path(__file__).parents[2] / "shared" / "data" / "math_word_problems"
ROW = {
    "Question": "Ann has number0 boxes of number1 pens and loses number10 .",
    "Numbers": "3.0 12.0 1 1 1 1 1 1 1 1 2.5",
    "Equation": "- * number0 number1 number10",
    "Answer": "33.5",
}


@pytest.fixture
def table(tmp_path):
    def write(*rows):
        path = tmp_path / "problems.csv"
        with path.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return get_task("math-word-problems", data=path)

    return write


@pytest.fixture(scope="session")
def published():
    def read(name):
        if not (DATA / name).is_file():
            pytest.skip("the published problems are not beside this project")
        return get_task("math-word-problems", data=DATA / name)

    return read


def test_numbers_stand_in_the_question_with_marks_by_size_and_the_response_is_an_equation_of_marks(table):
    (problem,) = table(ROW).train(seed=0)
    assert problem.question == "ann has 3 (B) boxes of 12 (A) pens and loses 2.5 (C) ."
    assert problem.response == "A*B-C" and problem.answer == "33.5"
    assert problem.kind == "two steps"


def test_the_larger_number_is_named_first_whatever_the_order_in_the_text(table):
    row = {"Question": "After number0 fell there are number1 ", "Equation": "- number1 number0", "Answer": "5"}
    problems = table(row | {"Numbers": "2 7"}, row | {"Numbers": "7 2", "Equation": "- number0 number1"}).train(seed=0)
    assert [problem.response for problem in problems] == ["A-B", "A-B"]


@pytest.mark.parametrize("part", ["train", "dev"])
@pytest.mark.parametrize("fold", range(5))
def test_every_published_reference_is_right_and_a_changed_one_wrong(published, fold, part):
    task = published(f"asdiv_fold{fold}_{part}.csv")
    for problem in task.test(seed=0):
        verdict = task.verify(problem, problem.response)
        assert verdict.correct and verdict.form, problem
        assert not task.verify(problem, f"2*({problem.response})+1").correct
        assert not task.verify(problem, "").correct


def test_equations_that_miss_their_answer_are_left_out_of_training_alone(published):
    task = published("mawps_asdiv_train.csv")
    with pytest.warns(UserWarning, match="13 of 3138 equations do not come to the answer"):
        training = task.train(seed=0)
    assert len(training) == 3125 and len(task.test(seed=0)) == 3138
    assert all(task.verify(problem, problem.response).correct for problem in training)
    assert not any("number0" in problem.question for problem in training)
    assert {problem.kind for problem in training} <= set(task.kinds)


def test_a_draw_by_seed_is_a_part_in_the_same_order(published):
    task = published("asdiv_fold0_dev.csv")
    whole, part = task.test(seed=0), task.test(50, seed=1)
    assert part == [problem for problem in whole if problem in set(part)] and len(part) == 50
    assert part == task.test(50, seed=1) != task.test(50, seed=2)


@pytest.mark.parametrize(
    ("text", "correct", "form"),
    [
        ("A*B-C", True, True),
        ("B * A - C", True, True),
        ("12*3-2.5", True, True),
        ("A*B-C = 9", True, False),  # worked out, whatever stands to the right
        ("12 * 3 - 2.5 = 33.5", True, False),
        ("She has 33.5 pens left.", True, False),  # as a source that was only asked may answer
        ("33 pens", False, False),
        ("A*B-", False, False),
        ("3 + 33.5", False, True),
        ("(3 + 33.5", False, False),  # an unfinished equation is not its last number
        ("AB", False, False),
        ("A*B-D", False, False),
        ("33.5 + = 33.5", False, False),
        ("", False, False),
    ],
)
def test_an_equation_is_worked_out_and_only_what_is_said_in_words_is_judged_by_its_last_number(
    table, text, correct, form
):
    task = table(ROW)
    (problem,) = task.test(seed=0)
    verdict = task.verify(problem, text)
    assert (verdict.correct, verdict.form) == (correct, form)


@pytest.mark.parametrize("column", ROW)
def test_missing_column_is_named(table, column):
    with pytest.raises(UserError, match=rf"record 1 lacks `{column}`; it has the fields: .*Add it"):
        table({name: value for name, value in ROW.items() if name != column})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Numbers": "3 12"}, "the question has the slot number10|names number10, and there are 2 numbers"),
        ({"Equation": "+ number0"}, "lacks an operand"),
        ({"Equation": "/ number0 0"}, "has no value"),
        ({"Answer": "many"}, "'many' is no number"),
        ({"Numbers": " ".join(["3"] * 27)}, "27 numbers are more than the 26 letters"),
    ],
)
def test_record_that_cannot_be_used_is_named(table, changes, message):
    with pytest.raises(UserError, match=f"record 2: .*({message})"):
        table(ROW, ROW | changes)


def test_file_without_a_sound_equation_cannot_be_trained_on(table):
    with (
        pytest.warns(UserWarning, match="1 of 1 equations"),
        pytest.raises(UserError, match="no equation comes to the answer"),
    ):
        table(ROW | {"Answer": "1"}).train(seed=0)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere.csv is not there"):
        get_task("math-word-problems", data=tmp_path / "nowhere.csv")
    (tmp_path / "empty.csv").write_text("Question,Numbers\n")
    with pytest.raises(UserError, match="is empty; it needs at least one record with Question, Numbers, Equation"):
        get_task("math-word-problems", data=tmp_path / "empty.csv")
