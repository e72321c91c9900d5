"""The built-in task `arithmetic`: small sums and the like in Stratos form, each worked in steps a tiny model can learn.

An operand pair (say 47 and 38 under addition) is either for training or for testing, whatever the wording, the order or
the seed. Training never writes a held-out pair, neither in a question nor within a thought.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from llm_modules.tasks import stratos
from llm_modules.tasks.base import Problem, Verdict
from llm_modules.tasks.reading import read_choice, read_number, read_quotient, read_remainder
from llm_modules.tasks.working import (
    Working,
    add,
    compare,
    divide,
    greatest_common_divisor,
    in_turn,
    multiply,
    subtract,
)


@dataclass(frozen=True)
class _Wording:
    """A way to ask, and how the results of the working answer it."""

    question: str
    solution: str = "{0}"


_SUMS = tuple(
    _Wording(question)
    for question in (
        "Find the sum of {a} and {b}.",
        "What is {a} + {b}?",
        "Add {a} and {b}.",
        "How much is {a} plus {b}?",
        "What do you get when you add {b} to {a}?",
    )
)
_DIFFERENCES = tuple(
    _Wording(question)
    for question in (
        "Find the difference between {a} and {b}.",
        "What is {a} - {b}?",
        "Subtract {b} from {a}.",
        "How much is {a} minus {b}?",
        "Take {b} away from {a}.",
    )
)
_PRODUCTS = tuple(
    _Wording(question)
    for question in (
        "Find the product of {a} and {b}.",
        "What is {a} * {b}?",
        "Multiply {a} by {b}.",
        "How much is {a} times {b}?",
        "Calculate {a} multiplied by {b}.",
    )
)
_DIVISIONS = (
    _Wording("Find the remainder by dividing {a} by {b}.", "{1}"),
    _Wording("What is the remainder when {a} is divided by {b}?", "{1}"),
    _Wording("Find the whole-number quotient of {a} divided by {b}.", "{0}"),
    _Wording("How many whole times does {b} go into {a}?", "{0}"),
    _Wording("Divide {a} by {b} and give the quotient and the remainder.", "{0} remainder {1}"),
    _Wording("What are the quotient and the remainder of {a} divided by {b}?", "{0} remainder {1}"),
)
_DIVISORS = tuple(
    _Wording(question)
    for question in (
        "Find the greatest common divisor of {a} and {b}.",
        "What is the greatest common divisor of {a} and {b}?",
        "What is the largest number that divides both {a} and {b}?",
        "Calculate gcd({a}, {b}).",
    )
)
_LARGER = tuple(
    _Wording(question)
    for question in (
        "Which number is larger, {a} or {b}?",
        "Find the larger of {a} and {b}.",
        "Which is greater: {a} or {b}?",
    )
)
_SMALLER = tuple(
    _Wording(question)
    for question in (
        "Which number is smaller, {a} or {b}?",
        "Find the smaller of {a} and {b}.",
        "Which is less: {a} or {b}?",
    )
)
# The brackets also keep the second operation's operands apart: "(3 + 40) - 7" never writes the pair "40 - 7".
_SUM_THEN_DIFFERENCE = (
    _Wording("Add {a} and {b}, then subtract {c}."),
    _Wording("What is ({a} + {b}) - {c}?"),
)
_DIFFERENCE_THEN_SUM = (
    _Wording("Subtract {b} from {a}, then add {c}."),
    _Wording("What is ({a} - {b}) + {c}?"),
)
_PRODUCT_THEN_SUM = (
    _Wording("Multiply {a} by {b}, then add {c}."),
    _Wording("What is ({a} * {b}) + {c}?"),
)


@dataclass(frozen=True)
class _Exercise:
    """A question with its working, before it is known whether it is for training or for testing."""

    question: str
    solution: str
    working: Working

    @classmethod
    def of(cls, wording: _Wording, working: Working, **operands: int) -> "_Exercise":
        return cls(wording.question.format(**operands), wording.solution.format(*working.results), working)

    @property
    def is_for_training(self) -> bool:
        return not any(pair.is_held_out for pair in self.working.pairs)

    @property
    def is_for_testing(self) -> bool:
        return all(pair.is_held_out and not pair.is_atom for pair in self.working.asked)

    def problem(self, kind: str) -> Problem:
        thought = "\n".join(self.working.lines)
        return Problem("arithmetic", kind, self.question, stratos.render(thought, self.solution), self.solution)


def _operand(rng: random.Random) -> int:
    """Draw a number below 100, one digit more often than chance would have it: each length is worked a little apart."""
    return rng.randrange(rng.choice((10, 100, 100, 100)))


def _draw_sum(rng: random.Random) -> _Exercise:
    a, b = _operand(rng), _operand(rng)
    return _Exercise.of(rng.choice(_SUMS), add(a, b), a=a, b=b)


def _draw_difference(rng: random.Random) -> _Exercise:
    b, a = sorted((_operand(rng), _operand(rng)))
    return _Exercise.of(rng.choice(_DIFFERENCES), subtract(a, b), a=a, b=b)


def _draw_product(rng: random.Random) -> _Exercise:
    # Many different pairs: with few, a model learns them by heart instead of the way to multiply.
    small = rng.randint(2, 12)
    large = rng.randint(2, min(99, 400 // small))
    a, b = rng.sample((small, large), 2)
    return _Exercise.of(rng.choice(_PRODUCTS), multiply(a, b), a=a, b=b)


def _draw_division(rng: random.Random) -> _Exercise:
    b = rng.randint(2, 12)
    a = rng.randint(b, rng.choice((12, 99, 99, 99)))
    return _Exercise.of(rng.choice(_DIVISIONS), divide(a, b), a=a, b=b)


def _draw_gcd(rng: random.Random) -> _Exercise:
    # Below ten times the divisor a division takes a single list, which keeps the thought short.
    small = rng.randint(2, 12)
    large = rng.randint(small + 1, min(10 * small - 1, 99))
    a, b = rng.sample((small, large), 2)
    return _Exercise.of(rng.choice(_DIVISORS), greatest_common_divisor(a, b), a=a, b=b)


def _draw_comparison(rng: random.Random) -> _Exercise:
    a, b = rng.sample(range(100), 2)
    largest = rng.random() < 0.5
    return _Exercise.of(rng.choice(_LARGER if largest else _SMALLER), compare(a, b, largest=largest), a=a, b=b)


def _draw_two_steps(rng: random.Random) -> _Exercise:
    match rng.randrange(3):
        case 0:
            wordings, (a, b) = _SUM_THEN_DIFFERENCE, sorted((rng.randrange(100), rng.randrange(100)))
            b -= a  # the sum stays below 100
            c = rng.randint(0, a + b)
            working = in_turn(add(a, b), subtract(a + b, c))
        case 1:
            wordings, (b, a) = _DIFFERENCE_THEN_SUM, sorted((rng.randrange(100), rng.randrange(100)))
            c = rng.randrange(100)
            working = in_turn(subtract(a, b), add(a - b, c))
        case _:
            wordings, a = _PRODUCT_THEN_SUM, rng.randint(2, 9)
            b, c = rng.randint(2, min(29, 99 // a)), rng.randrange(100)
            working = in_turn(multiply(a, b), add(a * b, c))
    return _Exercise.of(rng.choice(wordings), working, a=a, b=b, c=c)


_DRAWS: dict[str, Callable[[random.Random], _Exercise]] = {
    "sum": _draw_sum,
    "difference": _draw_difference,
    "product": _draw_product,
    "division": _draw_division,
    "gcd": _draw_gcd,
    "comparison": _draw_comparison,
    "two-step": _draw_two_steps,
}
_TRAINED_KINDS = (
    *("sum", "difference", "comparison", "product"),
    *("division", "gcd", "two-step", "division", "gcd", "two-step"),
)
"""What training draws in turn: twice as often where errors are most."""

_MAX_DRAWS_PER_PROBLEM = 20_000
"""Gives up on a kind whose supply is exhausted; the rarest test problem takes about a hundred draws."""


def _paper_question(kind: str, wording: _Wording, working: Working, a: int, b: int) -> Problem:
    return _Exercise.of(wording, working, a=a, b=b).problem(kind)


PAPER_QUESTIONS = (
    _paper_question("sum", _SUMS[0], add(5, 5), 5, 5),
    _paper_question("division", _DIVISIONS[0], divide(7, 4), 7, 4),
)
"""The two questions the paper was judged by. Neither is ever asked in training; 7 by 4 never occurs there at all, while
5 + 5 is one of the digit facts that longer sums are worked with."""


NUM_TRAIN, NUM_TEST = 6000, 200
"""How many problems make a training set and a fair test, where nothing else is said."""


class Arithmetic:
    """Sums, differences, products, divisions, greatest common divisors, comparisons and two steps in a row."""

    name = "arithmetic"
    kinds = tuple(_DRAWS)
    num_shots: int | None = None

    def train(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Return different training problems in random order, the hard kinds twice as often as the easy ones."""
        rng = random.Random(f"train {seed}")
        return self._problems(num_examples or NUM_TRAIN, _TRAINED_KINDS, rng, lambda drawn: drawn.is_for_training)

    def test(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Return different problems all of whose operand pairs are held out, the kinds in equal shares."""
        rng = random.Random(f"test {seed}")
        return self._problems(num_examples or NUM_TEST, self.kinds, rng, lambda drawn: drawn.is_for_testing)

    def few_shot_prompt(self, problem: Problem, num_examples: int, *, seed: int) -> list[dict[str, str]] | str:
        """Worked training problems of the same kind as earlier turns, then the question."""
        rng = random.Random(f"shots {seed}")
        wanted = (_DRAWS[problem.kind](rng) for _ in range(_MAX_DRAWS_PER_PROBLEM))
        shots = islice((exercise for exercise in wanted if exercise.is_for_training), num_examples)
        return [turn for shot in shots for turn in shot.problem(problem.kind).messages()] + problem.messages()[:1]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Judge by the solution section where there is one, otherwise by the answer that free text arrives at."""
        solution = stratos.solution_of(text)
        said = _read_answer(problem, text if solution is None else solution)
        return Verdict(correct=said == problem.answer, form=stratos.has_form(text))

    @staticmethod
    def _problems(
        num_examples: int, kinds: Sequence[str], rng: random.Random, is_wanted: Callable[[_Exercise], bool]
    ) -> list[Problem]:
        """Draw until `num_examples` different wanted problems are found, one kind after the other, then shuffle."""
        seen: set[str] = set()
        problems = []
        for kind in islice(cycle(kinds), num_examples):
            for _ in range(_MAX_DRAWS_PER_PROBLEM):
                exercise = _DRAWS[kind](rng)
                if is_wanted(exercise) and exercise.question not in seen:
                    break
            else:
                raise ValueError(
                    f"num_examples={num_examples}: there are not as many different problems; ask for fewer"
                )
            seen.add(exercise.question)
            problems.append(exercise.problem(kind))
        rng.shuffle(problems)
        return problems


def _read_answer(problem: Problem, text: str) -> str | None:
    """Read what was asked for out of `text`, in the canonical form of `Problem.answer`."""
    operands = [int(digits) for digits in re.findall(r"\d+", problem.question)]
    match problem.kind:
        case "comparison":
            return read_choice(text, largest=bool(re.search("larger|greater", problem.question)))
        case "division":
            operands.sort(reverse=True)  # "how many times does 9 go into 84" names the divisor first
            quotient, remainder = read_quotient(text, operands), read_remainder(text, operands)
            if "remainder" in problem.answer:
                return f"{quotient} remainder {remainder}"
            return remainder if "remainder" in problem.question else quotient
        case _:
            return read_number(text, operands)


TASK = Arithmetic()
