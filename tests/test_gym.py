"""Tasks of reasoning-gym: held out by question, judged by their scorers, full marks only."""

import pytest

pytest.importorskip("reasoning_gym", reason="the extra gym is not installed")

from llm_modules.errors import UserError
from llm_modules.tasks import get_task

NAMES = ["chain_sum", "spell_backward", "gcd", "number_sorting", "leg_counting"]


@pytest.fixture(scope="module", params=NAMES)
def task(request):
    return get_task(f"reasoning-gym:{request.param}")


def test_references_are_right_and_changed_ones_wrong(task):
    for problem in task.train(60, seed=0) + task.test(60, seed=0):
        assert task.verify(problem, problem.response).correct, problem
        assert task.verify(problem, f"Well.\n<answer> {problem.answer}\n</answer>").correct, problem
        for text in (f"{problem.answer}9", f"It is {problem.answer}, I think.", "", "<answer></answer>", "{'a': 1}"):
            assert not task.verify(problem, text).correct, (problem, text)


def test_no_test_problem_is_ever_trained_on(task):
    training = {problem.question for seed in range(3) for problem in task.train(150, seed=seed)}
    assert training.isdisjoint(problem.question for seed in range(3) for problem in task.test(40, seed=seed))


def test_equal_seeds_give_equal_problems_all_different(task):
    assert task.train(50, seed=1) == task.train(50, seed=1) != task.train(50, seed=2)
    assert len({problem.question for problem in task.train(150, seed=1)}) == 150


def test_demonstrations_are_training_problems(task):
    (problem,) = task.test(1, seed=0)
    *shots, question = task.few_shot_prompt(problem, 2, seed=0)
    assert question["content"] == problem.question
    assert [turn["content"] for turn in shots[::2]] == [shot.question for shot in task.train(2, seed=0)]


def test_unknown_task_names_the_known_ones():
    with pytest.raises(UserError, match="reasoning-gym has no task 'chain_song'; it has .* chain_sum"):
        get_task("reasoning-gym:chain_song")


def test_more_problems_than_there_are_is_refused(monkeypatch):
    task = get_task("reasoning-gym:chain_sum")
    few = list(task._draw_chunk(12, "few"))
    monkeypatch.setattr(task, "_draw_chunk", lambda size, purpose: few)
    with pytest.raises(
        UserError, match="reasoning-gym:chain_sum has no 50 different problems, but [0-9]+; ask for fewer"
    ):
        task.train(50, seed=0)
