"""Marks: the numbers of a question named by letters, the largest `A`, so that an equation is written without digits.

`Ann has 3 (B) boxes of 12 (A) pens.` In school problems the larger number is the one that is taken from or divided, so
names by size leave nothing of the order to be guessed; and what an answer means can be read from the question alone.
"""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from llm_modules.errors import UserError

_SLOT = re.compile(r"number(\d+)")
_MARKED = re.compile(r"(-?\d+(?:\.\d+)?) \(([A-Z])\)")


def by_size(numbers: Sequence[str], *, where: str) -> list[str]:
    """The letter of each number, `A` for the largest; the first of equal ones comes first.

    Raises:
        UserError: There are more numbers than letters.
    """
    if len(numbers) > len(ascii_uppercase):
        raise UserError(f"{where}: {len(numbers)} numbers are more than the {len(ascii_uppercase)} letters; split it")
    order = sorted(range(len(numbers)), key=lambda slot: -float(numbers[slot]))
    letters = dict(zip(order, ascii_uppercase, strict=False))
    return [letters[slot] for slot in range(len(numbers))]


def put_in(question: str, numbers: Sequence[str], letters: Sequence[str], *, where: str) -> str:
    """The question with a number and its mark, `12 (A)`, in place of each slot.

    Raises:
        UserError: A slot has no number.
    """

    def filled(slot: re.Match[str]) -> str:
        number = int(slot[1])
        if number >= len(numbers):
            raise UserError(f"{where}: the question has the slot {slot[0]}, and `Numbers` does not fill it; add it")
        return f"{numbers[number]} ({letters[number]})"

    return _SLOT.sub(filled, question)


def of(question: str) -> dict[str, str]:
    """Which number each letter of a question stands for."""
    return {letter: number for number, letter in _MARKED.findall(question)}


def renamed(question: str, expression: str) -> tuple[str, str] | None:
    """A marked question and its equation with the marks by size again, after numbers came or went.

    `None` where the equation names a number that the question no longer has.
    """
    numbers = of(question)
    letters = dict(zip(sorted(numbers, key=lambda letter: -float(numbers[letter])), ascii_uppercase, strict=False))
    if not set(re.findall(r"[A-Z]", expression)) <= set(letters):
        return None
    return (
        _MARKED.sub(lambda found: f"{found[1]} ({letters[found[2]]})", question),
        re.sub(r"[A-Z]", lambda letter: letters[letter[0]], expression),
    )


def fill(expression: str, numbers: Mapping[str, str]) -> str:
    """An expression with the numbers in place of their letters; two letters in a row stay two operands."""
    return re.sub(r"[A-Z]", lambda letter: f" {numbers.get(letter[0], letter[0])} ", expression)
