"""Arithmetic on paper: every operation worked digit by digit, with a record of the operand pairs it touches.

A tiny model cannot do `47 + 38` in one go, but it can learn 100 digit facts and the order to use them in. So every line
below states one fact small enough to be remembered, and copies the digits it needs from the line above it.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

HELD_OUT_SHARE = 5
"""One operand pair in this many is held out for testing."""

NAMED_HELD_OUT = {("+", 5, 5), ("/", 4, 7)}
"""The pairs of the paper's two questions."""


@dataclass(frozen=True, order=True)
class Pair:
    """An operation and its two operands, smaller one first: the unit that is held out as a whole."""

    operation: str
    low: int
    high: int

    @classmethod
    def of(cls, operation: str, a: int, b: int) -> "Pair":
        """Forget the order of the operands, so that no order of a held-out pair is ever trained."""
        return cls(operation, min(a, b), max(a, b))

    @property
    def is_atom(self) -> bool:
        """Whether this is one of the facts all working is made of, which must be trained: held out, nothing is left."""
        match self.operation:
            case "*":
                return self.low <= 9 and self.high <= 12
            case "/":
                return self.high <= 12
            case _:
                return self.low <= 9

    @property
    def is_held_out(self) -> bool:
        """Whether only tests may use this pair. A fixed rule, so that no seed's training meets another seed's test."""
        if (self.operation, self.low, self.high) in NAMED_HELD_OUT:
            return True
        digest = zlib.crc32(f"{self.operation}{self.low},{self.high}".encode())
        return not self.is_atom and digest % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Working:
    """What was written on the way to a result.

    Args:
        lines: the steps, the last one being the result.
        results: what came out: one number, or quotient and remainder.
        asked: the operand pairs of the question itself.
        pairs: every operand pair that is written, the asked ones included, apart from the digit facts of sums and
            differences.
    """

    lines: tuple[str, ...]
    results: tuple[int, ...]
    asked: frozenset[Pair]
    pairs: frozenset[Pair]

    @classmethod
    def of(cls, asked: Pair, lines: Iterable[str], *results: int, along: Iterable[Pair] = ()) -> "Working":
        """Record the working of one operation that used the pairs `along` on the way."""
        return cls(tuple(lines), results, frozenset({asked}), frozenset({asked, *along}))


def add(a: int, b: int) -> Working:
    """Add two numbers below 100: units, then tens with the carry."""
    (a_tens, a_units), (b_tens, b_units) = divmod(a, 10), divmod(b, 10)
    units = a_units + b_units
    carry = units // 10
    lines = (
        f"{a}+{b}",
        f"{a_units}+{b_units}={units}",
        f"{a_tens}+{b_tens}+{carry}={a_tens + b_tens + carry}",
        f"{a + b}",
    )
    return Working.of(Pair.of("+", a, b), lines, a + b)


def subtract(a: int, b: int) -> Working:
    """Take b from a, where b <= a < 100: units, borrowing where needed, then tens."""
    (a_tens, a_units), (b_tens, b_units) = divmod(a, 10), divmod(b, 10)
    borrow = int(a_units < b_units)
    minuend = a_units + 10 * borrow
    lines = (
        f"{a}-{b}",
        f"{minuend}-{b_units}={minuend - b_units}",
        f"{a_tens}-{b_tens}-{borrow}={a_tens - b_tens - borrow}",
        f"{a - b}",
    )
    return Working.of(Pair.of("-", a, b), lines, a - b)


def multiply(a: int, b: int) -> Working:
    """Multiply two numbers, the smaller at most 12: it times the other's units, times the tens, plus the carry."""
    small, large = sorted((a, b))
    tens, units = divmod(large, 10)
    low, high = small * units, small * tens
    carry = low // 10
    lines = [f"{small}*{large}", f"{small}*{units}={low}"]
    along = {Pair.of("*", small, units), Pair.of("*", small, tens)}
    if tens:
        lines.append(f"{small}*{tens}={high}")
    if tens and carry:
        addition = add(high, carry)
        lines += addition.lines
        along |= addition.pairs
    return Working.of(Pair.of("*", a, b), [*lines, f"{a * b}"], a * b, along=along)


def divide(a: int, b: int) -> Working:
    """Divide a by b, where a < 100 and b <= 12: long division, each digit found by listing the multiples of b."""
    quotient, remainder = divmod(a, b)
    answer = f"{quotient}r{remainder}"
    asked = Pair.of("/", a, b)
    if quotient < 10:
        return Working.of(asked, [*_count_multiples(a, b), answer], quotient, remainder)
    tens = divide(a // 10, b)
    units = divide(10 * tens.results[1] + a % 10, b)
    lines = [f"{a}/{b}", *tens.lines, *units.lines, answer]
    return Working.of(asked, lines, quotient, remainder, along=tens.pairs | units.pairs)


def _count_multiples(a: int, b: int) -> list[str]:
    """List the multiples of b to the first that exceeds a, and take the one before it from a.

    The tens of that multiple are left out on both sides (66 - 63 is written 6 - 3), which leaves a digit fact that
    differences use too. Written in full, models learnt the remainder of each pair by heart instead.
    """
    quotient, remainder = divmod(a, b)
    multiples = " ".join(str(b * n) for n in range(1, quotient + 2))
    units = (a - remainder) % 10
    return [f"{a}/{b}", multiples, f"{units + remainder}-{units}={remainder}"]


def greatest_common_divisor(a: int, b: int) -> Working:
    """Divide (Euclid) until 0 or 1 remains: after 0 the last divisor is the result, after 1 it can only be 1."""
    large, small = max(a, b), min(a, b)
    lines: list[str] = []
    along: set[Pair] = set()
    while small > 1:
        lines += _count_multiples(large, small)
        along.add(Pair.of("/", large, small))
        large, small = small, large % small
    result = small or large
    return Working.of(Pair.of("/", a, b), [*lines, f"{result}"], result, along=along)


def compare(a: int, b: int, *, largest: bool) -> Working:
    """Order two different numbers below 100 by tens, then by units if need be, and choose the first or the last.

    Ordering first makes two choices of one: which number is smaller, then which was asked for. In one step (6<7, so 78,
    being asked for the larger) a model learned to copy either number at random.
    """
    lines = [f"{a},{b}"]
    for a_digit, b_digit in zip(divmod(a, 10), divmod(b, 10), strict=True):
        sign = "=" if a_digit == b_digit else "<" if a_digit < b_digit else ">"
        lines.append(f"{a_digit}{sign}{b_digit}")
        if sign != "=":
            break
    low, high = sorted((a, b))
    result = high if largest else low
    return Working.of(Pair.of("?", a, b), [*lines, f"{low}<{high}", f"{result}"], result)


def in_turn(first: Working, second: Working) -> Working:
    """Join two workings of which the second starts from the first one's result."""
    lines = first.lines + second.lines
    return Working(lines, second.results, first.asked | second.asked, first.pairs | second.pairs)
