"""The Stratos form of a reasoned answer: a thought section, then a solution section."""

import re

_LAYOUT = "<|begin_of_thought|>\n{thought}\n<|end_of_thought|>\n<|begin_of_solution|>\n{solution}\n<|end_of_solution|>"
_TAG = re.compile(r"<\|(?:begin|end)_of_(?:thought|solution)\|>")
_TAGS_IN_ORDER = ["<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"]
_OPENED_BY = {"<|begin_of_thought|>": "thought", "<|begin_of_solution|>": "solution"}
_BEGUN = "|".join(re.escape(tag[:size]) for tag in _TAGS_IN_ORDER for size in range(2, len(tag)))
_BEGUN_TAG = re.compile(rf"(?:{_BEGUN})\Z")


def render(thought: str, solution: str) -> str:
    """Write both sections, with single line breaks: a tag alone costs a source without it nine tokens."""
    return _LAYOUT.format(thought=thought, solution=solution)


def has_form(text: str) -> bool:
    """Tell whether `text` is exactly the two sections, in order, once each, neither of them empty."""
    before, thought, between, solution, after, *_ = [part.strip() for part in _TAG.split(text)] + [""] * 4
    in_order = _TAG.findall(text) == _TAGS_IN_ORDER
    return in_order and bool(thought and solution) and not (before or between or after)


def solution_of(text: str) -> str | None:
    """Return the last solution section, closed or cut off, or None where `text` has none."""
    _, opening, rest = text.rpartition("<|begin_of_solution|>")
    return _TAG.split(rest)[0].strip() if opening else None


def sections(text: str) -> list[tuple[str, str]]:
    """Cut a text, finished or still being written, at its tags.

    Returns:
        What stands there, without blanks around it, each under `thought` or `solution`, or under nothing where it is in
        neither. What is empty is left out, and so is a last tag of which only the beginning is written.
    """
    found, name, start = [], "", 0
    for tag in _TAG.finditer(text):
        found.append((name, text[start : tag.start()]))
        name, start = _OPENED_BY.get(tag[0], ""), tag.end()
    found.append((name, _BEGUN_TAG.sub("", text[start:])))
    return [(name, part.strip()) for name, part in found if part.strip()]
