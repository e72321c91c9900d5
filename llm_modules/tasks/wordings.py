"""The ways in which the task `arithmetic` asks: those of training, and others that training never shows.

The others use other words and other turns of phrase for the same operations; whoever answers them has not learnt their
words from the training problems.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """A way to ask, and how the results of the working answer it."""

    question: str
    solution: str = "{0}"


@dataclass(frozen=True)
class Wordings:
    """Ways to ask for each operation; operands are `a`, `b` and `c`, of which `a` is the larger where it matters."""

    sums: tuple[Wording, ...]
    differences: tuple[Wording, ...]
    products: tuple[Wording, ...]
    divisions: tuple[Wording, ...]
    divisors: tuple[Wording, ...]
    larger: tuple[Wording, ...]
    smaller: tuple[Wording, ...]
    sum_then_difference: tuple[Wording, ...]
    difference_then_sum: tuple[Wording, ...]
    product_then_sum: tuple[Wording, ...]


def asks_for_larger(question: str) -> bool:
    """Whether a comparison asks for the larger number."""
    return bool(re.search("larger|greater|bigger|higher", question))


def asks_for_remainder(question: str) -> bool:
    """Whether a division asks for its remainder."""
    return bool(re.search("remainder|left over", question))


def _ways(*questions: str) -> tuple[Wording, ...]:
    return tuple(Wording(question) for question in questions)


TRAINED = Wordings(
    sums=_ways(
        "Find the sum of {a} and {b}.",
        "What is {a} + {b}?",
        "Add {a} and {b}.",
        "How much is {a} plus {b}?",
        "What do you get when you add {b} to {a}?",
    ),
    differences=_ways(
        "Find the difference between {a} and {b}.",
        "What is {a} - {b}?",
        "Subtract {b} from {a}.",
        "How much is {a} minus {b}?",
        "Take {b} away from {a}.",
    ),
    products=_ways(
        "Find the product of {a} and {b}.",
        "What is {a} * {b}?",
        "Multiply {a} by {b}.",
        "How much is {a} times {b}?",
        "Calculate {a} multiplied by {b}.",
    ),
    divisions=(
        Wording("Find the remainder by dividing {a} by {b}.", "{1}"),
        Wording("What is the remainder when {a} is divided by {b}?", "{1}"),
        Wording("Find the whole-number quotient of {a} divided by {b}.", "{0}"),
        Wording("How many whole times does {b} go into {a}?", "{0}"),
        Wording("Divide {a} by {b} and give the quotient and the remainder.", "{0} remainder {1}"),
        Wording("What are the quotient and the remainder of {a} divided by {b}?", "{0} remainder {1}"),
    ),
    divisors=_ways(
        "Find the greatest common divisor of {a} and {b}.",
        "What is the greatest common divisor of {a} and {b}?",
        "What is the largest number that divides both {a} and {b}?",
        "Calculate gcd({a}, {b}).",
    ),
    larger=_ways(
        "Which number is larger, {a} or {b}?",
        "Find the larger of {a} and {b}.",
        "Which is greater: {a} or {b}?",
    ),
    smaller=_ways(
        "Which number is smaller, {a} or {b}?",
        "Find the smaller of {a} and {b}.",
        "Which is less: {a} or {b}?",
    ),
    # The brackets also keep the second operation's operands apart: "(3 + 40) - 7" never writes the pair "40 - 7".
    sum_then_difference=_ways("Add {a} and {b}, then subtract {c}.", "What is ({a} + {b}) - {c}?"),
    difference_then_sum=_ways("Subtract {b} from {a}, then add {c}.", "What is ({a} - {b}) + {c}?"),
    product_then_sum=_ways("Multiply {a} by {b}, then add {c}.", "What is ({a} * {b}) + {c}?"),
)

REWORDED = Wordings(
    sums=_ways(
        "Compute {a} plus {b}.",
        "What do {a} and {b} make together?",
        "What is the total of {a} and {b}?",
        "If you have {a} and get {b} more, how many have you?",
        "Sum up {a} and {b}.",
        "Increase {a} by {b}.",
    ),
    differences=_ways(
        "Compute {a} minus {b}.",
        "What remains of {a} when {b} is removed?",
        "What is {a} less {b}?",
        "You have {a} and lose {b}. How many are left?",
        "Reduce {a} by {b}.",
        "By how much does {a} exceed {b}?",
    ),
    products=_ways(
        "Compute {a} times {b}.",
        "What do {a} groups of {b} make?",
        "What is the result of {a} x {b}?",
        "What is {a} taken {b} times?",
        "There are {a} boxes with {b} pens each. How many pens are there?",
    ),
    divisions=(
        Wording("What is left over when {a} is shared among {b}?", "{1}"),
        Wording("Compute the remainder of {a} over {b}.", "{1}"),
        Wording("{a} pens go into boxes of {b}. How many pens are left over?", "{1}"),
        Wording("Give the quotient of {a} and {b} without fraction.", "{0}"),
        Wording("How often does {b} fit into {a}?", "{0}"),
        Wording("State how often {b} fits into {a}, and the remainder.", "{0} remainder {1}"),
    ),
    divisors=_ways(
        "Name the biggest common factor of {a} and {b}.",
        "What is the highest common factor of {a} and {b}?",
        "Which is the largest factor that {a} and {b} share?",
    ),
    larger=_ways(
        "Which is bigger, {a} or {b}?",
        "Name the greater of {a} and {b}.",
        "Of {a} and {b}, which one is higher?",
    ),
    smaller=_ways(
        "Which is the lesser, {a} or {b}?",
        "Which is lower, {a} or {b}?",
        "Of {a} and {b}, which one is the minor?",
    ),
    sum_then_difference=_ways(
        "Put {a} and {b} together, then take {c} off.",
        "You have {a}, get {b} and give away {c}. How many have you?",
    ),
    difference_then_sum=_ways(
        "Take {b} off {a}, then put {c} to it.",
        "You have {a}, lose {b} and get {c}. How many have you?",
    ),
    product_then_sum=_ways(
        "Take {a} times {b} and increase it by {c}.",
        "You have {a} bags of {b} and {c} more. How many have you?",
    ),
)
