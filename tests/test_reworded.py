"""The task `arithmetic-reworded`: the same problems as `arithmetic`, asked in words that training never shows."""

import math
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_modules.tasks import Problem, get_task, stratos
from llm_modules.tasks.wordings import REWORDED, TRAINED
from llm_modules.tasks.working import Pair

TASK, PLAIN = get_task("arithmetic-reworded"), get_task("arithmetic")
SEEDS = st.integers(0, 2**32 - 1)
SIGNS = {"sum": "+", "difference": "-", "product": "*", "division": "/", "gcd": "/", "comparison": "?"}


def wording_of(question: str) -> str:
    """The question without its numbers."""
    return re.sub(r"\d+", "N", question)


def operands_of(problem: Problem) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", problem.question)]


def recomputed(problem: Problem) -> str:
    """Work out the right answer from the question alone."""
    (a, b, *rest), question = operands_of(problem), problem.question
    match problem.kind:
        case "sum":
            return str(a + b)
        case "difference":
            return str(a - b)
        case "product":
            return str(a * b)
        case "gcd":
            return str(math.gcd(a, b))
        case "comparison":
            return str(max(a, b) if re.search("bigger|greater|higher", question) else min(a, b))
        case "division":
            quotient, remainder = divmod(max(a, b), min(a, b))
            if "and the remainder" in question:
                return f"{quotient} remainder {remainder}"
            return str(quotient if re.search("quotient|How often", question) else remainder)
        case _:
            (c,) = rest
            if question.startswith("Put") or "give away" in question:
                return str(a + b - c)
            if "times" in question or "bags" in question:
                return str(a * b + c)
            return str(b - a + c if question.startswith("Take") else a - b + c)


@settings(max_examples=15)
@given(seed=SEEDS)
def test_every_problem_is_answered_rightly_in_form_and_in_words(seed: int) -> None:
    for problem in TASK.test(140, seed=seed):
        assert problem.task == "arithmetic-reworded"
        assert problem.answer == recomputed(problem), problem
        verdict = TASK.verify(problem, problem.response)
        assert verdict.correct and verdict.form, problem
        in_words = TASK.verify(problem, f"Let me think. The answer is {problem.answer}.")
        assert in_words.correct and not in_words.form, problem


@settings(max_examples=15)
@given(seed=SEEDS, off_by=st.integers(1, 50))
def test_wrong_answers_are_refused(seed: int, off_by: int) -> None:
    for problem in TASK.test(70, seed=seed):
        wrong = re.sub(r"\d+$", lambda number: str(int(number[0]) + off_by), problem.answer)
        assert not TASK.verify(problem, stratos.render("thought", wrong)).correct, problem
        assert not TASK.verify(problem, f"The answer is {wrong}.").correct, problem


@settings(max_examples=5)
@given(seed=SEEDS)
def test_no_test_question_is_worded_as_a_training_question(seed: int) -> None:
    trained = {wording_of(problem.question) for problem in TASK.train(2_000, seed=seed)}
    asked = {wording_of(problem.question) for problem in TASK.test(400, seed=seed)}
    assert not trained & asked
    assert len(asked) > 30


@settings(max_examples=5)
@given(seed=SEEDS)
def test_the_operands_of_a_test_question_are_held_out(seed: int) -> None:
    for problem in TASK.test(140, seed=seed):
        if problem.kind in SIGNS:
            a, b = operands_of(problem)
            assert Pair.of(SIGNS[problem.kind], a, b).is_held_out, problem


def test_training_is_that_of_arithmetic() -> None:
    ours, theirs = TASK.train(140, seed=3), PLAIN.train(140, seed=3)
    assert [problem.messages() for problem in ours] == [problem.messages() for problem in theirs]
    assert TASK.kinds == PLAIN.kinds


def test_demonstrations_are_worded_as_in_training() -> None:
    trained = {wording_of(problem.question) for problem in PLAIN.train(2_000, seed=0)}
    for problem in TASK.test(len(TASK.kinds), seed=1):
        *shots, question = TASK.few_shot_prompt(problem, 3, seed=1)
        assert question == {"role": "user", "content": problem.question}
        assert {wording_of(turn["content"]) for turn in shots if turn["role"] == "user"} <= trained


def test_no_way_to_ask_is_in_both_lists() -> None:
    for name in vars(TRAINED):
        ours, theirs = getattr(REWORDED, name), getattr(TRAINED, name)
        assert ours and not {wording.question for wording in ours} & {wording.question for wording in theirs}
