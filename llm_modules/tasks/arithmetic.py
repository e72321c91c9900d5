"""The built-in task `arithmetic`: small sums and the like in Stratos form, each worked in steps a tiny model can learn.

An operand pair (say 47 and 38 under addition) is either for training or for testing, whatever the wording, the order or
the seed. Training never writes a held-out pair, neither in a question nor within a thought.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from llm_modules.tasks import stratos
from llm_modules.tasks.base import Problem, Verdict
from llm_modules.tasks.reading import read_choice, read_number, read_quotient, read_remainder
from llm_modules.tasks.wordings import TRAINED, Wording, Wordings, asks_for_larger, asks_for_remainder
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
class _Exercise:
    """A question with its working, before it is known whether it is for training or for testing."""

    question: str
    solution: str
    working: Working

    @classmethod
    def of(cls, wording: Wording, working: Working, **operands: int) -> "_Exercise":
        return cls(wording.question.format(**operands), wording.solution.format(*working.results), working)

    @property
    def is_for_training(self) -> bool:
        return not any(pair.is_held_out for pair in self.working.pairs)

    @property
    def is_for_testing(self) -> bool:
        return all(pair.is_held_out and not pair.is_atom for pair in self.working.asked)

    def problem(self, task: str, kind: str) -> Problem:
        thought = "\n".join(self.working.lines)
        return Problem(task, kind, self.question, stratos.render(thought, self.solution), self.solution)


def _operand(rng: random.Random) -> int:
    """Draw a number below 100, one digit more often than chance would have it: each length is worked a little apart."""
    return rng.randrange(rng.choice((10, 100, 100, 100)))


def _draw_sum(rng: random.Random, say: Wordings) -> _Exercise:
    a, b = _operand(rng), _operand(rng)
    return _Exercise.of(rng.choice(say.sums), add(a, b), a=a, b=b)


def _draw_difference(rng: random.Random, say: Wordings) -> _Exercise:
    b, a = sorted((_operand(rng), _operand(rng)))
    return _Exercise.of(rng.choice(say.differences), subtract(a, b), a=a, b=b)


def _draw_product(rng: random.Random, say: Wordings) -> _Exercise:
    # Many different pairs: with few, a model learns them by heart instead of the way to multiply.
    small = rng.randint(2, 12)
    large = rng.randint(2, min(99, 400 // small))
    a, b = rng.sample((small, large), 2)
    return _Exercise.of(rng.choice(say.products), multiply(a, b), a=a, b=b)


def _draw_division(rng: random.Random, say: Wordings) -> _Exercise:
    b = rng.randint(2, 12)
    a = rng.randint(b, rng.choice((12, 99, 99, 99)))
    return _Exercise.of(rng.choice(say.divisions), divide(a, b), a=a, b=b)


def _draw_gcd(rng: random.Random, say: Wordings) -> _Exercise:
    # Below ten times the divisor a division takes a single list, which keeps the thought short.
    small = rng.randint(2, 12)
    large = rng.randint(small + 1, min(10 * small - 1, 99))
    a, b = rng.sample((small, large), 2)
    return _Exercise.of(rng.choice(say.divisors), greatest_common_divisor(a, b), a=a, b=b)


def _draw_comparison(rng: random.Random, say: Wordings) -> _Exercise:
    a, b = rng.sample(range(100), 2)
    largest = rng.random() < 0.5
    return _Exercise.of(rng.choice(say.larger if largest else say.smaller), compare(a, b, largest=largest), a=a, b=b)


def _draw_two_steps(rng: random.Random, say: Wordings) -> _Exercise:
    match rng.randrange(3):
        case 0:
            wordings, (a, b) = say.sum_then_difference, sorted((rng.randrange(100), rng.randrange(100)))
            b -= a  # the sum stays below 100
            c = rng.randint(0, a + b)
            working = in_turn(add(a, b), subtract(a + b, c))
        case 1:
            wordings, (b, a) = say.difference_then_sum, sorted((rng.randrange(100), rng.randrange(100)))
            c = rng.randrange(100)
            working = in_turn(subtract(a, b), add(a - b, c))
        case _:
            wordings, a = say.product_then_sum, rng.randint(2, 9)
            b, c = rng.randint(2, min(29, 99 // a)), rng.randrange(100)
            working = in_turn(multiply(a, b), add(a * b, c))
    return _Exercise.of(rng.choice(wordings), working, a=a, b=b, c=c)


_DRAWS: dict[str, Callable[[random.Random, Wordings], _Exercise]] = {
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


def _paper_question(kind: str, wording: Wording, working: Working, a: int, b: int) -> Problem:
    return _Exercise.of(wording, working, a=a, b=b).problem("arithmetic", kind)


PAPER_QUESTIONS = (
    _paper_question("sum", TRAINED.sums[0], add(5, 5), 5, 5),
    _paper_question("division", TRAINED.divisions[0], divide(7, 4), 7, 4),
)
"""The two questions the paper was judged by. Neither is ever asked in training; 7 by 4 never occurs there at all, while
5 + 5 is one of the digit facts that longer sums are worked with."""


NUM_TRAIN, NUM_TEST = 6000, 200
"""How many problems make a training set and a fair test, where nothing else is said."""


@dataclass(frozen=True)
class _Drawing:
    """Exercises drawn at random, asked in some wordings, of which only the wanted ones are kept."""

    rng: random.Random
    wordings: Wordings
    is_wanted: Callable[[_Exercise], bool]

    @classmethod
    def for_training(cls, seed: str) -> "_Drawing":
        """What training and demonstrations show."""
        return cls(random.Random(seed), TRAINED, lambda exercise: exercise.is_for_training)

    def of_kind(self, kind: str) -> Iterator[_Exercise]:
        """Draw on and on, up to a limit."""
        drawn = (_DRAWS[kind](self.rng, self.wordings) for _ in range(_MAX_DRAWS_PER_PROBLEM))
        return filter(self.is_wanted, drawn)


class Arithmetic:
    """Sums, differences, products, divisions, greatest common divisors, comparisons and two steps in a row.

    Args:
        name: Of the task.
        asked: How its tests ask. Training and demonstrations ask as in `TRAINED`.
    """

    kinds = tuple(_DRAWS)
    num_shots: int | None = None

    def __init__(self, name: str, *, asked: Wordings):
        self.name = name
        self._asked = asked

    def train(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Return different training problems in random order, the hard kinds twice as often as the easy ones."""
        drawn = _Drawing.for_training(f"train {seed}")
        return self._problems(num_examples or NUM_TRAIN, _TRAINED_KINDS, drawn)

    def test(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Return different problems all of whose operand pairs are held out, the kinds in equal shares."""
        drawn = _Drawing(random.Random(f"test {seed}"), self._asked, lambda exercise: exercise.is_for_testing)
        return self._problems(num_examples or NUM_TEST, self.kinds, drawn)

    def few_shot_prompt(self, problem: Problem, num_examples: int, *, seed: int) -> list[dict[str, str]] | str:
        """Worked training problems of the same kind as earlier turns, then the question."""
        drawn = _Drawing.for_training(f"shots {seed}")
        shots = islice(drawn.of_kind(problem.kind), num_examples)
        turns = [turn for shot in shots for turn in shot.problem(self.name, problem.kind).messages()]
        return turns + problem.messages()[:1]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Judge by the solution section where there is one, otherwise by the answer that free text arrives at."""
        solution = stratos.solution_of(text)
        said = _read_answer(problem, text if solution is None else solution)
        return Verdict(correct=said == problem.answer, form=stratos.has_form(text))

    def _problems(self, num_examples: int, kinds: Sequence[str], drawn: _Drawing) -> list[Problem]:
        """Draw until `num_examples` different problems are found, one kind after the other, then shuffle."""
        seen: set[str] = set()
        problems = []
        for kind in islice(cycle(kinds), num_examples):
            exercise = next((each for each in drawn.of_kind(kind) if each.question not in seen), None)
            if exercise is None:
                raise ValueError(
                    f"num_examples={num_examples}: there are not as many different problems; ask for fewer"
                )
            seen.add(exercise.question)
            problems.append(exercise.problem(self.name, kind))
        drawn.rng.shuffle(problems)
        return problems


def _read_answer(problem: Problem, text: str) -> str | None:
    """Read what was asked for out of `text`, in the canonical form of `Problem.answer`."""
    operands = [int(digits) for digits in re.findall(r"\d+", problem.question)]
    match problem.kind:
        case "comparison":
            return read_choice(text, largest=asks_for_larger(problem.question))
        case "division":
            operands.sort(reverse=True)  # "how many times does 9 go into 84" names the divisor first
            quotient, remainder = read_quotient(text, operands), read_remainder(text, operands)
            if "remainder" in problem.answer:
                return f"{quotient} remainder {remainder}"
            return remainder if asks_for_remainder(problem.question) else quotient
        case _:
            return read_number(text, operands)


TASK = Arithmetic("arithmetic", asked=TRAINED)
