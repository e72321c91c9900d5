"""The task `gsm8k`, and the judge of numbers that it shares with `jsonl`."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("math_verify")

from llm_modules.errors import UserError
from llm_modules.tasks import get_task
from llm_modules.tasks.numeric import is_equal, is_number

DATA = Path(__file__).parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
RECORD = {
    "question": "Two and two?",
    "answer": "2 plus 2 is <<2+2=4>>4.\nTwice that is <<4*2=1,008>>1,008.\n#### 1,008",
}


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(RECORD))
    return get_task("gsm8k", data=path)


def test_the_response_is_the_working_without_asides(task):
    (problem,) = task.train(seed=0)
    assert problem.response == "2 plus 2 is 4.\nTwice that is 1,008.\n#### 1008"
    assert problem.answer == "1008"


@pytest.mark.parametrize(
    ("text", "correct", "form"),
    [
        ("So it is.\n#### 1008", True, True),
        ("So it is.\n#### 1,008", True, True),
        ("So it is.\n#### 1009", False, True),
        ("The answer is 1008.", True, False),
        ("The answer is $1,008.00", True, False),
        ("#### 7\nno, \n#### 1008", True, True),
        ("", False, False),
        ("#### ", False, False),
    ],
)
def test_the_final_answer_decides(task, text, correct, form):
    (problem,) = task.test(seed=0)
    verdict = task.verify(problem, text)
    assert (verdict.correct, verdict.form) == (correct, form)


def test_published_references_are_right_and_changed_ones_wrong():
    if not DATA.is_file():
        pytest.skip("the published problems are not beside this project")
    task = get_task("gsm8k", data=DATA)
    problems = task.test(seed=0)
    assert len(problems) == 7473 and not any("<<" in problem.response for problem in problems)
    for problem in problems:
        verdict = task.verify(problem, problem.response)
        assert verdict.correct and verdict.form, problem
    for problem in problems[:300]:
        assert not task.verify(problem, f"{problem.response}1").correct


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "a"}, "lacks `answer`; it has the fields: question"),
        ({"answer": "a\n#### 4"}, "lacks `question`"),
        ({"question": "a", "answer": "4"}, "does not end with a line `#### number`"),
        ({"question": "a", "answer": "#### four"}, "does not end with a line `#### number`"),
        ({"question": "a", "answer": ["#### 4"]}, "`answer` is a list"),
        ([], "is a list, not a mapping"),
    ],
)
def test_record_that_cannot_be_used_is_named(tmp_path, record, message):
    path = tmp_path / "problems.jsonl"
    path.write_text(f"{json.dumps(RECORD)}\n{json.dumps(record)}\n")
    with pytest.raises(UserError, match=f"record 2.*{message}"):
        get_task("gsm8k", data=path)


@settings(max_examples=50)
@given(st.integers(-(10**6), 10**6), st.integers(1, 99))
def test_numbers_equal_themselves_and_no_other(number, step):
    assert is_number(str(number))
    assert is_equal(str(number), f"The answer is {number}")
    assert not is_equal(str(number), f"The answer is {number + step}")


@pytest.mark.parametrize("text", ["0.5", "1/2", r"\boxed{\frac{1}{2}}", "50%", "It is 0.50."])
def test_numbers_are_equal_however_they_are_written(text):
    assert is_equal("1/2", text)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["9^9^9^9^9", "(" * 2000, "1/0", "\x00", "nan", "x" * 100_000])
def test_no_text_stops_the_judge(text):
    assert not is_equal("72", text)


def test_numbers_are_judged_off_the_main_thread_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(is_equal("72", "72")))
    thread.start()
    thread.join()
    assert found == [True]
