"""Multiple choice: how the choices are shown below a question, and which one a text takes."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

_SHOWN = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)
_SAID = re.compile(r"(?i:answer|choice|option)\s*(?i:is)?\W*([A-Z])\b")
_BARE = re.compile(r"\W*([A-Z])(?=$|[)*.:,\n])")


def ask(question: str, choices: Sequence[str]) -> str:
    """The question with its choices, one a line: `A. …`."""
    shown = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return f"{question}\n{shown}"


def taken(question: str, text: str) -> str | None:
    """The letter of the choice that a text takes, by letter or by repeating it; `None` where that is unclear."""
    shown = dict(_SHOWN.findall(question))
    text = text.strip()
    found = _BARE.match(text) or _SAID.search(text)
    if found:
        return found[1] if found[1] in shown else None
    named = [
        letter
        for letter, choice in shown.items()
        if re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text, re.IGNORECASE)
    ]
    return named[0] if len(named) == 1 else None
