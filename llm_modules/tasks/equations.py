"""Equations of word problems: from prefix to a line one can read, and from any text to the value it arrives at.

An expression reads `(B+C)*A`, or `(56 + 4) * 9 = 540`. It is worked out here by a parser of its own, without Python's
`eval`, and in a loop rather than by recursion, so that no text a model may write does harm.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from llm_modules.errors import UserError
from llm_modules.tasks import marks

OPERATORS = ("+", "-", "*", "/")
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2, "~": 3}
_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_READ = re.compile(rf"[ \t]*(?:({_NUMBER})|([-+*/()]))")
_SLOT = re.compile(r"number(\d+)")
_OF_EXPRESSIONS = "0123456789.+-*/() \t"
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "$": None})


@dataclass(frozen=True)
class _Part:
    """A part of an expression: terms of a sum, factors of a product, or one operand.

    Args:
        rank: how tightly its outermost operator binds, 3 for an operand.
        more: what is added or multiplied.
        less: what is taken away or divided by.
    """

    rank: int
    more: tuple[str, ...]
    less: tuple[str, ...] = ()

    def __str__(self) -> str:
        plus, minus = "+-" if self.rank == 1 else "*/"
        return plus.join(sorted(self.more)) + "".join(f"{minus}{part}" for part in sorted(self.less))

    def within(self, rank: int) -> "_Part":
        """The same as a part of a sum (1) or product (2): its own terms, or all of it as one."""
        if self.rank == rank:
            return self
        return _Part(rank, (f"({self})" if self.rank < rank else str(self),))


def from_prefix(equation: str, operands: Sequence[str], *, where: str) -> str:
    """Write a prefix equation in infix, in one order, and with no more brackets than needed.

    Sums and products are written with what is added (multiplied) first, each half sorted: `+ number1 number0` and
    `+ number0 number1` come out the same.

    Args:
        equation: Operators before operands, such as `- number0 * number1 2.0`.
        operands: What stands in slot `number0`, `number1`, …
        where: How messages of errors name the equation.

    Raises:
        UserError: It is no prefix equation, or names a slot without an operand.
    """
    stack: list[_Part] = []
    for sign in reversed(equation.split()):
        if sign not in OPERATORS:
            stack.append(_Part(3, (_operand(sign, operands, where=where),)))
            continue
        if len(stack) < 2:
            raise UserError(f"{where}: the equation {equation!r} lacks an operand of {sign!r}; correct it")
        rank = _RANK[sign]
        left, right = stack.pop().within(rank), stack.pop()
        if sign == "/":  # a quotient below a quotient stays in brackets, so that what has no value keeps none
            divisor = str(right) if right.rank == 3 else f"({right})"
            stack.append(_Part(rank, left.more, (*left.less, divisor)))
            continue
        right = right.within(rank)
        more, less = (right.less, right.more) if sign == "-" else (right.more, right.less)
        stack.append(_Part(rank, (*left.more, *more), (*left.less, *less)))
    if len(stack) != 1:
        raise UserError(f"{where}: the equation {equation!r} is not one prefix expression; correct it")
    return str(stack[0])


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


def said_value(text: str, numbers: Mapping[str, str] | None = None) -> float | None:
    """The value at which a text arrives: that of its equation, or of its last number where it has none.

    The equation is the left side of the last `=`, or the whole of a text without words. It is worked out, whatever
    stands to the right of the sign; one that cannot be (`12 - 5 +`) has no value. Only what is said in words
    ("She has 7 left.") is judged by its last number.

    Args:
        text: What a model wrote.
        numbers: What the letters of an equation stand for.
    """
    numbers = numbers or {}
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.translate(_SIGNS)).strip().rstrip(".")
    of_expressions = _OF_EXPRESSIONS + "".join(numbers)
    left, equals, _ = text.rpartition("=")
    if equals:
        expression = left[len(left.rstrip(of_expressions)) :].rpartition(". ")[2].strip()
        if expression:
            return evaluate(marks.fill(expression, numbers))
    elif not text.strip(of_expressions):
        return evaluate(marks.fill(text, numbers))
    found = re.findall(rf"(?<![\w.])-?(?:{_NUMBER})", text)
    return float(found[-1]) if found else None


def has_form(text: str, numbers: Mapping[str, str]) -> bool:
    """Tell whether a text is an expression of numbers and of the letters that stand for some, and nothing else."""
    return evaluate(marks.fill(text.strip(), numbers)) is not None


def agree(value: float, answer: float) -> bool:
    """Whether two values are the same to a ten-thousandth of the larger."""
    # The last term is for rounding: 10 / 3 against 3.333 lies exactly on the border.
    return math.isfinite(value) and abs(value - answer) <= 1e-4 * max(abs(value), abs(answer)) + 1e-9


def _operand(part: str, operands: Sequence[str], *, where: str) -> str:
    slot = _SLOT.fullmatch(part)
    if slot is None:
        return tidy(part, where=where)
    if int(slot[1]) >= len(operands):
        raise UserError(f"{where}: the equation names {part}, and there are {len(operands)} numbers; add it")
    return operands[int(slot[1])]


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
