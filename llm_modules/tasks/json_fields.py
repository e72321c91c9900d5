"""Read JSON objects out of what a model wrote, and compare them field by field."""

import json
from collections.abc import Mapping
from typing import Any

from llm_modules.tasks.base import Field


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")  # Python reads NaN and Infinity all the same


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def read_object(text: str) -> dict[str, Any] | None:
    """The first JSON object of a text, whatever stands around it; `None` where there is none."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        found, _ = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_object(text: str) -> bool:
    """Tell whether a text is one JSON object and nothing else."""
    try:
        return isinstance(_DECODER.decode(text.strip()), dict)
    except (ValueError, RecursionError):
        return False


def compare(said: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Field, ...]:
    """Every field of either, in the order of `wanted`; null and the empty text fill nothing.

    Texts are compared without regard to case and white space, numbers by value, also where one is written as text.
    """
    fields = []
    for name in [*wanted, *(name for name in said if name not in wanted)]:
        mine, theirs = wanted.get(name), said.get(name)
        is_wanted, is_said = mine not in (None, ""), theirs not in (None, "")
        fields.append(Field(name, is_wanted, is_said, is_wanted and is_said and _same(mine, theirs)))
    return tuple(fields)


def f1(fields: list[Field]) -> float:
    """`2 right / (wanted + said)`: the harmonic mean of precision and recall; 1 where nothing was wanted or said."""
    offered = sum(field.wanted + field.said for field in fields)
    return 2 * sum(field.right for field in fields) / offered if offered else 1.0


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, bool) or isinstance(theirs, bool):
        return mine is theirs
    if isinstance(mine, int | float):
        value = _number(theirs)
        return value is not None and abs(value - mine) < 1e-6
    if isinstance(mine, str):
        return isinstance(theirs, str) and " ".join(theirs.casefold().split()) == " ".join(mine.casefold().split())
    return bool(mine == theirs)


def _number(value: Any) -> float | None:
    try:
        return float(value.replace(",", "") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
