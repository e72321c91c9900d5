"""The task `jsonl`: each verifier accepts what it should and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_modules.errors import UserError
from llm_modules.tasks import choices, get_task

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
COLOURS = {"question": "Which?", "choices": ["red", "dark red", "blue"], "answer": "blue"}


@pytest.fixture
def task(tmp_path):
    def make(verifier, *records):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return get_task("jsonl", data=path, verifier=verifier)

    return make


def judged(task, text, number=0):
    return task.verify(task.test(seed=0)[number], text).correct


@pytest.mark.parametrize(
    ("verifier", "record", "right", "wrong"),
    [
        ("exact", {"question": "a", "answer": "Oslo"}, ["Oslo", " Oslo\n"], ["oslo", "Oslo.", "", "Oslo is it"]),
        ("exact", {"prompt": "a", "completion": "Oslo"}, ["Oslo"], ["Bergen"]),
        ("regex", {"question": "a", "answer": r"^\d{3}$"}, ["123"], ["12", "1234", ""]),
        ("regex", {"question": "a", "answer": "(?i)oslo"}, ["it is OSLO"], ["Bergen"]),
        (
            "choice",
            COLOURS,
            ["C", "(C)", "C.", "**C**", "The answer is C", "blue", "It is Blue."],
            ["A", "red", "", "D"],
        ),
        ("choice", COLOURS | {"answer": "A"}, ["A", "red", "Answer: A"], ["B", "red or blue", "Always"]),
    ],
)
def test_verifier_accepts_the_right_and_refuses_the_wrong(task, verifier, record, right, wrong):
    chosen = task(verifier, record)
    assert [judged(chosen, text) for text in right] == [True] * len(right)
    assert [judged(chosen, text) for text in wrong] == [False] * len(wrong)


def test_numeric_reads_the_final_number(task):
    pytest.importorskip("math_verify")
    chosen = task("numeric", {"question": "a", "answer": 72.5}, {"question": "b", "answer": "1,000"})
    assert judged(chosen, "It is 72.50") and not judged(chosen, "It is 72") and not judged(chosen, "many")
    assert judged(chosen, "1000", 1) and not judged(chosen, "1", 1)


def test_choices_are_shown_with_letters(task):
    problem = task("choice", COLOURS).test(seed=0)[0]
    assert problem.question == "Which?\nA. red\nB. dark red\nC. blue"
    assert problem.answer == problem.response == "C"


@given(st.lists(TEXT, min_size=2, max_size=6, unique_by=str.casefold), st.data())
def test_the_letter_of_any_choice_takes_it(offered, data):
    place = data.draw(st.integers(0, len(offered) - 1))
    letter = "ABCDEF"[place]
    assert choices.taken(choices.ask("Which?", offered), letter) == letter


@given(TEXT)
def test_no_text_stops_the_reader(text):
    assert choices.taken("Which?\nA. red\nB. blue", text) in (None, "A", "B")


def test_records_name_their_kind_and_their_response(task):
    chosen = task(
        "exact",
        {"question": "a", "answer": "4", "kind": "sum", "response": "it is 4"},
        {"question": "b", "answer": "5"},
    )
    assert chosen.kinds == ("jsonl", "sum")
    assert [problem.response for problem in chosen.train(seed=0)] == ["it is 4", "5"]


def test_demonstrations_are_other_records_of_the_kind(task):
    records = [{"question": f"q{number}", "answer": str(number)} for number in range(5)]
    chosen = task("exact", *records)
    for problem in chosen.test(seed=0):
        *shots, question = chosen.few_shot_prompt(problem, 2, seed=0)
        assert len(shots) == 4 and question["content"] == problem.question
        assert problem.question not in [turn["content"] for turn in shots]


@pytest.mark.parametrize(
    ("verifier", "record", "message"),
    [
        ("exact", {"question": "a"}, "record 1 lacks `answer` or `completion`; it has the fields: question"),
        ("exact", {"answer": "a"}, "record 1 lacks `question` or `prompt`"),
        ("exact", {"question": "a", "answer": True}, "`answer` is a bool"),
        ("regex", {"question": "a", "answer": "("}, "'\\(' is no regular expression"),
        ("choice", {"question": "a", "answer": "b"}, "lacks `choices`"),
        ("choice", COLOURS | {"choices": ["red"]}, "needs a list of 2 to 26"),
        ("choice", COLOURS | {"choices": ["red", 3]}, "each be one line of text"),
        ("choice", COLOURS | {"choices": ["red", "Red"]}, "repeats itself"),
        ("choice", COLOURS | {"answer": "green"}, "'green' is none of the choices and no letter of A to C"),
    ],
)
def test_record_that_cannot_be_judged_is_refused(task, verifier, record, message):
    with pytest.raises(UserError, match=message):
        task(verifier, record)


def test_answer_without_a_number_is_refused_by_numeric(task):
    pytest.importorskip("math_verify")
    with pytest.raises(UserError, match="record 1: the answer 'Oslo' holds no number; correct it or choose another"):
        task("numeric", {"question": "a", "answer": "Oslo"})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("jsonl", {"verifier": "exact"}, "'jsonl' reads its problems from a file; give it as --data FILE"),
        ("jsonl", {"data": "a.jsonl"}, "needs a verifier; choose one of: exact, numeric, regex, choice"),
        ("jsonl", {"data": "a.jsonl", "verifier": "near"}, "no verifier is called 'near'"),
        ("arithmetic", {"data": "a.jsonl"}, "'arithmetic' makes its own problems and data=a.jsonl would mean nothing"),
        ("gsm8k", {"data": "a.jsonl", "verifier": "exact"}, "'gsm8k' has its own verifier and verifier=exact"),
        (
            "algebra",
            {},
            "choose one of: arithmetic, arithmetic-reworded, facts, tickets, gsm8k, math-word-problems, jsonl",
        ),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(name, arguments, message):
    with pytest.raises(UserError, match=message):
        get_task(name, **arguments)
