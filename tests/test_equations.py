"""Equations are written so that they mean the same, and worked out without running anything."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llm_modules.errors import UserError
from llm_modules.tasks.equations import OPERATORS, agree, evaluate, from_prefix, has_form, said_value, tidy

NUMBERS = st.decimals(0, 10_000, places=2).map(lambda number: format(number, "f"))
TREES = st.recursive(NUMBERS, lambda below: st.tuples(st.sampled_from(OPERATORS), below, below), max_leaves=8)


def prefix(tree):
    return tree if isinstance(tree, str) else " ".join([tree[0], prefix(tree[1]), prefix(tree[2])])


def value(tree):
    """By recursion over the tree: another way than the parser's."""
    if isinstance(tree, str):
        return float(tree)
    first, last = value(tree[1]), value(tree[2])
    if tree[0] == "/":
        return first / last if last else math.nan
    return {"+": first + last, "-": first - last, "*": first * last}[tree[0]]


@given(TREES)
def test_infix_means_what_the_prefix_meant(tree):
    expected = value(tree)
    found = evaluate(from_prefix(prefix(tree), [], where="here"))
    if math.isfinite(expected):
        # brackets are left out around sums of sums, so the order of rounding may differ
        assert found is not None and math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-3)
    else:
        assert found is None


@given(TREES)
def test_an_equation_is_in_form_and_says_its_value(tree):
    found = evaluate(expression := from_prefix(prefix(tree), [], where="here"))
    assume(found is not None)
    assert has_form(expression, {}) and said_value(expression) == said_value(f"{expression} = 7") == found
    assert not has_form(f"So {expression}", {}) and not has_form(f"{expression} = 7", {})


@given(TREES)
def test_turned_sums_and_products_come_out_the_same(tree):
    def turned(tree):
        if isinstance(tree, str):
            return tree
        sign, first, last = tree[0], turned(tree[1]), turned(tree[2])
        return (sign, last, first) if sign in "+*" else (sign, first, last)

    assert from_prefix(prefix(turned(tree)), [], where="here") == from_prefix(prefix(tree), [], where="here")


@given(st.text("0123456789.+-*/()=, x\n", max_size=40))
def test_no_text_does_harm(text):
    for found in (evaluate(text), said_value(text)):
        assert found is None or isinstance(found, float)
    has_form(text, {"A": "1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("8 - 3 - 2", 3),
        ("8 / 4 / 2", 1),
        ("-2 * -(3 + 1)", 8),
        (".5*4", 2),
        ("(" * 5000 + "1" + ")" * 5000, 1),
    ],
)
def test_expressions_are_worked_out(text, expected):
    assert evaluate(text) == expected


@pytest.mark.parametrize(
    "text", ["", "1 +", "+ 1", "1 2", "(1", "1)", "()", "2 ** 3", "1 / 0", "9e9", "a", "__import__('os')", "9" * 400]
)
def test_what_has_no_value_has_none(text):
    assert evaluate(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("56 * 9 = 504", 504),
        ("56 * 9", 504),
        ("56 *", None),
        ("504.", 504),
        ("B-A", -2),
        ("So B - A = 3", -2),
        ("A baker sold 12 cakes", 12),
        ("56 * 9 = 1", 504),  # worked out, whatever stands to the right
        ("56 × 9 = 504 books in total.", 504),
        ("First 5 + 3 = 8, then 8 * 2 = 16.", 16),
        ("She has 3 left. 5 - 2 = 3", 3),
        ("$1,200 + $300 = $1,500", 1500),
        ("The answer is 504.", 504),
        ("x = 7", 7),
        ("5 + = 9", None),
        ("I do not know.", None),
    ],
)
def test_a_text_says_the_value_of_its_last_equation_or_its_last_number(text, expected):
    assert said_value(text, {"A": "5", "B": "3"}) == expected


def test_values_agree_to_a_ten_thousandth():
    assert agree(10 / 3, 3.333) and agree(504.04, 504) and agree(0, 0)
    assert not agree(504.1, 504) and not agree(0.01, 0) and not agree(math.inf, 1.0) and not agree(-5, 5)


@pytest.mark.parametrize(
    ("number", "text"), [("56.0", "56"), ("0.50", "0.5"), ("25000.0", "25000"), ("7", "7"), ("-0.0", "0")]
)
def test_numbers_of_a_table_are_written_as_one_writes_them(number, text):
    assert tidy(number, where="here") == text


@pytest.mark.parametrize(
    ("equation", "message"),
    [
        ("+ number0", "lacks an operand of '\\+'"),
        ("number0 number1", "is not one prefix expression"),
        ("", "is not one prefix expression"),
        ("+ number0 number2", "names number2, and there are 2 numbers"),
        ("+ number0 many", "'many' is no number"),
        ("+ number0 nan", "no number to reckon with"),
    ],
)
def test_broken_equation_is_refused(equation, message):
    with pytest.raises(UserError, match=f"record 3: .*{message}"):
        from_prefix(equation, ["1", "2"], where="record 3")
