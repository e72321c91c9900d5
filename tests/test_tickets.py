"""The task `tickets`: honest split, strict judge."""

import datetime
import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_modules.evaluation import judge
from llm_modules.tasks import get_task, ticket_words
from llm_modules.tasks.json_fields import compare, f1, is_object, read_object
from llm_modules.tasks.ticket_words import ISSUES, REQUESTS, Vocabulary
from llm_modules.writing import Writing

TASK = get_task("tickets")
VOCABULARIES = {name: found for name, found in vars(ticket_words).items() if isinstance(found, Vocabulary)} | {
    f"{name} {kind}": words
    for name, group in (("issue", ISSUES), ("request", REQUESTS))
    for kind, words in group.items()
}
TEMPLATES = ("TICKETS", "TICKETS_WITHOUT_ORDER", "INVOICES", "DATES")
SMALLEST = {
    "FIRST_NAMES": 180,
    "SURNAMES": 180,
    "TOWNS": 75,
    "PRODUCTS": 210,
    "COMPANIES": 120,
    "COMPANY_ENDINGS": 15,
    "TICKETS": 27,
    "TICKETS_WITHOUT_ORDER": 12,
    "INVOICES": 27,
    "DATES": 9,
}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
OBJECTS = st.dictionaries(st.text(max_size=5), SCALARS, max_size=5)


def text_of(problem):
    """What the question is about, without the instruction before it."""
    return problem.question.partition("\n\n")[2]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_vocabulary_has_two_parts_that_share_nothing(name):
    vocabulary = VOCABULARIES[name]
    training, held_out = (vocabulary.part(held_out=part) for part in (False, True))
    assert training and held_out and not set(training) & set(held_out)
    assert sorted(training + held_out) == sorted(set(vocabulary.entries))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_vocabulary_is_too_large_to_be_learnt_by_heart(name):
    assert len(VOCABULARIES[name].entries) >= SMALLEST.get(name, 45)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_no_entry_is_another_in_other_letters_nor_a_piece_of_it(name):
    entries = [entry.casefold() for entry in VOCABULARIES[name].entries]
    assert len(set(entries)) == len(entries) and all(entry == entry.strip() and entry for entry in entries)
    pieces = [one for one in entries if any(f" {one} " in f" {other} " for other in entries if other != one)]
    assert name == "DATES" or not pieces


def test_no_phrase_names_a_field_or_breaks_the_layout_of_a_template():
    for group in (ISSUES, REQUESTS):
        for vocabulary in group.values():
            for phrase in vocabulary.entries:
                assert not re.search(r"\b(customer|product|order|town|complaint|wish|issue|request)\b", phrase), phrase
                assert not re.search(r'["{}|;:.!?\n]', phrase) and phrase.isascii(), phrase


def test_no_held_out_word_occurs_in_any_training_text_nor_a_training_word_in_a_test():
    for problems, foreign in ((TASK.train(1500, seed=3), True), (TASK.test(1500, seed=3), False)):
        texts = "\n".join(text_of(problem) for problem in problems).casefold()
        for name, vocabulary in VOCABULARIES.items():
            if name in TEMPLATES:
                continue
            for word in map(str.casefold, vocabulary.part(held_out=foreign)):
                if word in texts:  # nearly none is: the search by whole words would take ten seconds for all
                    assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", texts), (name, word)


def test_no_training_text_is_written_in_a_held_out_template_nor_the_reverse():
    for problems, foreign in ((TASK.train(300, seed=4), True), (TASK.test(300, seed=4), False)):
        for name in TEMPLATES[:3]:
            for template in VOCABULARIES[name].part(held_out=foreign):
                shape = re.sub(r"\\\{\w+\\\}", ".+?", re.escape(template))
                assert not [one for one in problems if re.fullmatch(shape, text_of(one), re.DOTALL)], template


def test_every_template_names_all_that_is_asked_for():
    asked = {
        "TICKETS": {"customer", "order", "product"},
        "TICKETS_WITHOUT_ORDER": {"customer", "product"},
        "INVOICES": {"supplier", "number", "date", "currency", "total"},
    }
    for name, slots in asked.items():
        for template in VOCABULARIES[name].entries:
            named = set(re.findall(r"\{(\w+)\}", template))
            assert slots <= named, template
            assert name == "INVOICES" or ({"complaint", "Complaint"} & named and {"wish", "Wish"} & named), template


@pytest.mark.parametrize("name", TEMPLATES[:3])
def test_every_template_is_filled_with_nothing_but_the_fields_that_are_drawn(name):
    ticket = ("customer", "product", "order", "town", "complaint", "Complaint", "wish", "Wish")
    invoice = ("supplier", "number", "date", "customer", "town", "quantity", "product", "price", "net", "tax", "total")
    drawn = {"TICKETS": ticket, "INVOICES": (*invoice, "currency")}.get(name, tuple(set(ticket) - {"order"}))
    for template in VOCABULARIES[name].entries:
        text = template.format(**{field: f"<{field}>" for field in drawn})
        assert not re.search(r"[{}]", text) and len(text.split()) < 80, template


def test_every_form_of_a_date_is_read_in_one_way_only():
    day = datetime.date(2021, 2, 3)
    forms = {
        form.format(day=day.day, month="February", mm=f"{day.month:02}", year=day.year)
        for form in VOCABULARIES["DATES"].entries
    }
    assert len(forms) == len(VOCABULARIES["DATES"].entries)
    for form in forms:
        digits_from_year_to_day = re.fullmatch(r"2021\D02\D03", form)
        assert digits_from_year_to_day or (re.search("Feb", form) and {"3", "03"} & set(re.findall(r"\d+", form))), form


def test_training_and_test_share_no_product_phrase_or_name():
    phrases = [phrase for group in (ISSUES, REQUESTS) for words in group.values() for phrase in words.entries]

    def used(problems):
        fields = [json.loads(problem.answer) for problem in problems]
        texts = "\n".join(text_of(problem) for problem in problems).casefold()
        return {
            "products": {one["product"] for one in fields if "product" in one},
            "names": {word for one in fields for word in one.get("customer", "").split()},
            "companies": {one["supplier"].split()[0] for one in fields if "supplier" in one},
            "phrases": {phrase for phrase in phrases if phrase.casefold() in texts},
        }

    training, held_out = used(TASK.train(2000, seed=9)), used(TASK.test(2000, seed=9))
    assert all(len(found) > 20 and not found & held_out[name] for name, found in training.items())


def test_the_answer_stands_in_the_text():
    for problem in TASK.test(200, seed=0):
        fields = json.loads(problem.answer)
        said = [fields[name] for name in ("customer", "product", "order", "supplier", "invoice") if fields.get(name)]
        assert said and all(value in text_of(problem) for value in said)
        if problem.kind == "invoice":
            assert f"{fields['total']:,.2f}" in text_of(problem)


@pytest.mark.parametrize("part", [TASK.train, TASK.test])
def test_equal_seeds_give_equal_problems_all_different(part):
    assert part(100, seed=5) == part(100, seed=5) != part(100, seed=6)
    problems = part(400, seed=5)
    assert len({problem.question for problem in problems}) == 400
    assert Counter(problem.kind for problem in problems) == {"ticket": 200, "invoice": 200}


def test_some_tickets_have_no_order_number_and_say_so_with_null():
    orders = [json.loads(one.answer)["order"] for one in TASK.train(400, seed=0) if one.kind == "ticket"]
    assert 10 < orders.count(None) < 90


def test_every_reference_answer_is_right_and_in_form():
    for problem in TASK.train(seed=0) + TASK.test(seed=0):
        verdict = TASK.verify(problem, problem.response)
        assert verdict.correct and verdict.form, problem


def test_any_changed_field_is_wrong():
    for problem in TASK.test(60, seed=0):
        fields = json.loads(problem.answer)
        for name, value in fields.items():
            other = value + 1 if isinstance(value, float) else f"{value}x"
            verdict = TASK.verify(problem, json.dumps(fields | {name: other}))
            assert not verdict.correct and verdict.form
            assert [field.name for field in verdict.fields if field.said and not field.right] == [name]
            without = {key: said for key, said in fields.items() if key != name}
            assert TASK.verify(problem, json.dumps(without)).correct == (value is None)


def test_answers_of_another_form_are_judged_by_their_first_object():
    problem = next(one for one in TASK.test(10, seed=0) if one.kind == "invoice")
    fields = json.loads(problem.answer)
    for text in (
        f"Here it is:\n```json\n{problem.answer}\n```",
        json.dumps(fields | {"total": f"{fields['total']:,}"}),
    ):
        assert TASK.verify(problem, text).correct
    assert not TASK.verify(problem, f"Here: {problem.answer}").form
    assert not TASK.verify(problem, problem.answer[:-1]).correct
    assert not TASK.verify(problem, json.dumps(fields | {"colour": "red"})).correct


def test_f1_of_fields_is_told_for_all_and_for_each():
    problems = [one for one in TASK.test(20, seed=0) if one.kind == "invoice"][:2]
    right, wrong = problems[0].answer, json.dumps(json.loads(problems[1].answer) | {"currency": "DM", "total": None})
    found = judge(TASK, problems, Writing([right, wrong], num_tokens=9, seconds=1.0))
    scores = found.field_f1()
    assert scores["supplier"] == 1.0 and scores["currency"] == 0.5
    assert scores["total"] == pytest.approx(2 * 1 / (2 + 1))
    assert scores["all"] == pytest.approx(2 * 8 / (10 + 9))
    assert found.as_dict()["field_f1"] == scores and found.as_dict()["form"] == 1.0


@given(OBJECTS)
def test_an_object_is_read_out_of_any_text_and_equals_itself(wanted):
    text = json.dumps(wanted)
    assert is_object(text) and read_object(f"Well: {text} so") == wanted
    assert all(field.right == field.wanted == field.said for field in compare(read_object(text), wanted))
    assert f1(list(compare(wanted, wanted))) == 1.0


@given(st.text('{}[]",:0123456789.eNaInfity \n\\', max_size=60))
def test_no_text_stops_the_judge(text):
    said = read_object(text)
    assert said is None or isinstance(said, dict)
    assert not is_object(text) or said is not None


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"a": NaN}', '{"a": 1}{', '{"a":' * 50_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_what_is_no_object_is_none(text):
    assert not is_object(text)


def test_demonstrations_are_training_texts_of_the_same_kind():
    for problem in TASK.test(2, seed=0):
        *shots, question = TASK.few_shot_prompt(problem, 3, seed=1)
        assert question == {"role": "user", "content": problem.question}
        assert len(shots) == 6 and all(
            set(json.loads(turn["content"])) == set(json.loads(problem.answer)) for turn in shots[1::2]
        )
