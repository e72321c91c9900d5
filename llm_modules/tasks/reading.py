"""Read the final answer out of what a model wrote, however it chose to put it.

The source is asked in plain words and answers in plain words: judging it only by the form that the pair is trained on
would flatter the pair. So a statement that names the answer ("47 + 38 = 85, because ...") is believed first, and the
last number of the text only where there is none.
"""

import re
from collections.abc import Iterable, Sequence

_N = r"(?<![\d.])(-?\d+(?:\.\d+)?)(?![\d%]|\.\d)"
"""A number. A minus right before it is its sign unless it stands between two operands, which `_plain` sets apart."""
_ANY = r"(?<![\d.])\d+"
"""A number that is not the one looked for."""
_RESULT = _N + r"(?!\s*[-+*/=]\s*[\d(])"
"""A number that no calculation goes on from: in "is 40 + 45 = 85" the 40 is no result."""
_IS = r"\s*\)?\s*(?:is equal to|is|are|equals|gives|=|:)\s*"
_LARGER, _SMALLER = r"larger|greater|bigger|higher|more|>", r"smaller|less|lower|fewer|<"


def read_number(text: str, operands: Sequence[int]) -> str | None:
    """Return the result of a calculation with `operands`, given in the order in which the question names them."""
    text = _plain(text)
    return _first_found(
        text,
        [
            rf"(?:answer|result){_IS}{_RESULT}",
            rf"{_in_order(operands)}{_IS}{_RESULT}",
            rf"{_in_order(reversed(operands))}{_IS}{_RESULT}",
            rf"{_N} is the\b",
            _N,
        ],
    )


def read_quotient(text: str, operands: Sequence[int]) -> str | None:
    """Return how often the second operand goes into the first, from a text that may name the remainder as well."""
    text = _plain(text)
    return _first_found(
        text,
        [
            rf"quotient(?:\D*{_in_order(operands)})?{_IS}{_RESULT}",
            rf"{_N}\s*r\s*{_ANY}",
            rf"{_N}[\s,]*(?:with|and)?\s*(?:a |the )?remainder",
            rf"{_N} (?:whole |full )?times",
            rf"{_in_order(operands)}{_IS}{_RESULT}",
            rf"(?:answer|result){_IS}{_RESULT}",
            _N,
        ],
    )


def read_remainder(text: str, operands: Sequence[int]) -> str | None:
    """Return what is left of the first operand, from a text that may name the quotient as well."""
    text = _plain(text)
    return _first_found(
        text,
        [
            rf"remainder\D*{_in_order(operands)}{_IS}{_RESULT}",
            rf"remainder(?:{_IS}|\s+(?:of\s+)?){_RESULT}",
            rf"{_ANY}\s*r\s*{_N}",
            rf"(?:answer|result){_IS}{_RESULT}",
            _N,
        ],
    )


def read_choice(text: str, *, largest: bool) -> str | None:
    """Return the number that `text` calls the larger (smaller) of two, whichever way round it puts it."""
    text = _plain(text)
    asked, other = (_LARGER, _SMALLER) if largest else (_SMALLER, _LARGER)
    gap = r"\s*(?:is|are)?\s*(?:a |the )?"
    than = r"(?: number)?(?: than)?\s*"
    return _first_found(
        text,
        [
            rf"{_N}{gap}(?:{asked}){than}{_ANY}",
            rf"{_ANY}{gap}(?:{other}){than}{_N}",
            rf"{_N} is (?:the )?(?:{asked})",
            _N,
        ],
    )


def _plain(text: str) -> str:
    """Undo typesetting: emphasis, LaTeX, signs for operations, thousands separators."""
    text = re.sub(r"\\boxed\{\s*(-?[\d.,]+)\s*\}", r"the answer is \1", text)
    text = re.sub(r"\\text\{([^}]*)\}", r"\1", text)
    text = text.replace("\\times", "*").replace("\\div", "/").translate(str.maketrans("×÷−–", "*/--", "*$`\\"))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.sub(r"(?<=[\d)])\s*-\s*(?=[\d(])", " - ", text).lower()


def _in_order(operands: Iterable[int]) -> str:
    """Match the operands one after the other with no number between them."""
    return r"(?<![\d.])" + r"\D+".join(str(operand) for operand in operands)


def _first_found(text: str, patterns: Iterable[str]) -> str | None:
    """Return the first group of the last match of the first pattern that matches at all, as a plain number."""
    for pattern in patterns:
        if matches := list(re.finditer(pattern, text)):
            value = float(matches[-1].group(1))
            return str(int(value)) if value.is_integer() else str(value)
    return None
