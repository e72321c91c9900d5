"""Equations of word problems: from prefix to a line one can read, and from any text to the value it arrives at.

A line reads `(56 + 4) * 9 = 540`. It is worked out here by a parser of its own, without Python's `eval`, and in a loop
rather than by recursion, so that no text a model may write does harm.
"""

import math
import re
from collections.abc import Sequence
from decimal import Decimal

from llm_modules.errors import UserError

OPERATORS = ("+", "-", "*", "/")
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2, "~": 3}
_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_READ = re.compile(rf"[ \t]*(?:({_NUMBER})|([-+*/()]))")
_SLOT = re.compile(r"number(\d+)")
_OF_EXPRESSIONS = "0123456789.+-*/() \t"
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "$": None})


def from_prefix(equation: str, numbers: Sequence[str], *, where: str) -> str:
    """Write a prefix equation in infix, with the numbers in place of its slots and no more brackets than needed.

    Args:
        equation: Operators before operands, such as `- number0 * number1 2.0`.
        numbers: What stands in slot `number0`, `number1`, …
        where: How messages of errors name the equation.

    Raises:
        UserError: It is no prefix equation, or names a slot without a number.
    """
    stack: list[tuple[str, int]] = []  # infix text, and how tightly its outermost operator binds
    for part in reversed(equation.split()):
        if part not in OPERATORS:
            stack.append((_operand(part, numbers, where=where), 3))
            continue
        if len(stack) < 2:
            raise UserError(f"{where}: the equation {equation!r} lacks an operand of {part!r}; correct it")
        (left, left_rank), (right, right_rank), rank = stack.pop(), stack.pop(), _RANK[part]
        left = f"({left})" if left_rank < rank else left
        right = f"({right})" if right_rank < rank or (right_rank == rank and part in "-/") else right
        stack.append((f"{left} {part} {right}", rank))
    if len(stack) != 1:
        raise UserError(f"{where}: the equation {equation!r} is not one prefix expression; correct it")
    return stack[0][0]


def evaluate(expression: str) -> float | None:
    """Work an infix expression out; `None` where it is none, or has no value."""
    values: list[float] = []
    waiting: list[str] = []  # operators and brackets; "~" is the minus of a sign
    operand_next, place, expression = True, 0, expression.rstrip()
    while place < len(expression):
        read = _READ.match(expression, place)
        if read is None:
            return None
        place, (number, sign) = read.end(), read.groups()
        if operand_next and number:
            values.append(float(number))
            operand_next = False
        elif operand_next and sign in ("(", "-"):
            waiting.append("~" if sign == "-" else sign)
        elif operand_next or number or sign == "(":
            return None
        elif sign == ")":
            _reduce_(values, waiting, rank=0)
            if not waiting:
                return None
            waiting.pop()
        else:
            _reduce_(values, waiting, rank=_RANK[sign])
            waiting.append(sign)
            operand_next = True
    if operand_next or "(" in waiting:
        return None
    _reduce_(values, waiting, rank=0)
    return values[0] if math.isfinite(values[0]) else None


def said_value(text: str) -> float | None:
    """The value at which a text arrives: that of its last equation's left side, else its last number.

    An equation is worked out, whatever stands to the right of its sign; one that cannot be has no value.
    """
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.translate(_SIGNS))
    left, equals, _ = text.rpartition("=")
    expression = left[len(left.rstrip(_OF_EXPRESSIONS)) :].rpartition(". ")[2].strip() if equals else ""
    if expression:
        return evaluate(expression)
    found = re.findall(rf"(?<![\w.])-?(?:{_NUMBER})", text)
    return float(found[-1]) if found else None


def has_form(text: str) -> bool:
    """Tell whether a text is one line, `expression = number`, and nothing else."""
    left, equals, right = text.strip().partition("=")
    return bool(equals) and evaluate(left) is not None and re.fullmatch(rf"[ \t]*-?(?:{_NUMBER})", right) is not None


def agree(value: float, answer: float) -> bool:
    """Whether two values are the same to a ten-thousandth of the larger."""
    # The last term is for rounding: 10 / 3 against 3.333 lies exactly on the border.
    return math.isfinite(value) and abs(value - answer) <= 1e-4 * max(abs(value), abs(answer)) + 1e-9


def as_text(value: float) -> str:
    """A number as one writes it: `504`, not `504.0`, and at most four decimals."""
    return format(Decimal(repr(round(value, 4))).normalize() + 0, "f")


def _operand(part: str, numbers: Sequence[str], *, where: str) -> str:
    slot = _SLOT.fullmatch(part)
    if slot is None:
        return tidy(part, where=where)
    if int(slot[1]) >= len(numbers):
        raise UserError(f"{where}: the equation names {part}, and there are {len(numbers)} numbers; add it")
    return tidy(numbers[int(slot[1])], where=where)


def tidy(number: str, *, where: str) -> str:
    """A number of a table as a question would have it: `56.0` becomes `56`.

    Raises:
        UserError: It is no number.
    """
    try:
        value = Decimal(number)
    except ArithmeticError:
        raise UserError(f"{where}: {number!r} is no number; correct it") from None
    if not value.is_finite():
        raise UserError(f"{where}: {number!r} is no number to reckon with; correct it")
    return format(value.normalize() + 0, "f")


def _reduce_(values: list[float], waiting: list[str], *, rank: int) -> None:
    """Apply the waiting operators that bind at least as tightly as `rank`, back to the last open bracket."""
    while waiting and waiting[-1] != "(" and _RANK[waiting[-1]] >= rank:
        _apply_(values, waiting.pop())


def _apply_(values: list[float], sign: str) -> None:
    """Replace the last operands by the result."""
    last = values.pop()
    if sign == "~":
        values.append(-last)
        return
    first = values.pop()
    match sign:
        case "+":
            result = first + last
        case "-":
            result = first - last
        case "*":
            result = first * last
        case _:
            result = first / last if last else math.nan
    values.append(result)
