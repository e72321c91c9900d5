r"""Is the number in a text the right one? math-verify reads both: `1/2` is `0.5`, and `\boxed{72}` is `72`."""

import threading

from math_verify import parse, verify

TIMEOUT_S = 2


def is_number(answer: str) -> bool:
    """Tell whether an answer can be judged as a number."""
    return bool(_read(answer))


def is_equal(answer: str, text: str) -> bool:
    """Tell whether the final answer of `text` equals `answer`; unreadable text does not."""
    return bool(verify(_read(answer), _read(text), timeout_seconds=_timeout_s()))


def _read(text: str) -> list:
    found: list = parse(text, parsing_timeout=_timeout_s())
    return found


def _timeout_s() -> int | None:
    """A limit for expressions like `9^9^9^9`; it works by a signal, which only the main thread may set."""
    return TIMEOUT_S if threading.current_thread() is threading.main_thread() else None
