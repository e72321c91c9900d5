"""Does a free text name the right answer to a question of fact? One text, one guess.

Only the first sentence of the first line counts, and in it only the first name of the kind asked for: a text that lists
every capital, or answers and then thinks better of it, is judged by what it says first.
"""

import functools
import re
import unicodedata
from collections.abc import Collection

_SENTENCE_END = re.compile(r"\n|(?<![A-Z])(?<!\bSt)[.!?](?=\s|$)")
_LIST_MARKER = re.compile(r"^\d+[.)] +(?=\S)")
_WORD = re.compile(r"\w+")
# Capitalised, but no place: how an answer may open.
_OPENERS = frozenset(
    {"a", "an", "answer", "capital", "city", "it", "its", "of", "official", "sure", "the", "this", "yes"}
)


def fold(text: str) -> str:
    """Lower case, no accents, apostrophes or full stops; any other punctuation becomes a single space."""
    text = text.translate(str.maketrans("łŁıøØđĐ", "lLioOdD"))
    text = "".join(mark for mark in unicodedata.normalize("NFKD", text) if not unicodedata.combining(mark))
    return " ".join(re.sub(r"[^\w\s]", " ", re.sub(r"['’‘ʻ`.]", "", text)).casefold().split())


def first_sentence(text: str) -> str:
    """What stands before the first line break or full stop; a list's "1." is dropped.

    "St. John's" and "D.C." do not end a sentence.
    """
    return _SENTENCE_END.split(_LIST_MARKER.sub("", text.strip(), count=1), maxsplit=1)[0]


def first_number(sentence: str) -> str | None:
    """The first number in digits, as written: "196.97" is not 196."""
    found = re.search(r"\d+(?:[.,]\d+)*", sentence)
    return found[0] if found else None


def first_symbol(sentence: str) -> str | None:
    """The first word spelled like a chemical symbol, one capital and at most one small letter.

    A first word followed by a small-lettered one is English ("In chemistry, …", "It is …") and skipped.
    """
    sentence = re.sub(r"^\W*[A-Z][a-z]?\s+(?=[a-z])", "", sentence)
    found = re.search(r"(?<![\w'’])[A-Z][a-z]?(?![\w'’])", sentence)
    return found[0] if found else None


def first_of(sentence: str, names: frozenset[str], *, subject: str) -> str | None:
    """The first of `names` in the sentence, folded, plurals included, after the subject has been taken out once."""
    text = f" {fold(sentence)} ".replace(f" {fold(subject)} ", " ", 1)
    found = _any_of(names).search(text)
    return found[1] if found else None


@functools.cache
def _any_of(names: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(map(fold, names), key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(longest_first)})(?:e?s)?\b")


def names_first(sentence: str, accepted: Collection[str], *, subject: str) -> bool:
    """Whether the first proper name of the sentence is an accepted one.

    Not counted as a name: openers ("The", "City") and the subject with its derivatives (Norway, Norwegian), which
    share four letters with it. An accepted name is recognised before either, so that Algiers counts for Algeria.
    """
    accepted = tuple(map(fold, accepted))
    own_stems = tuple(word[:4] for word in fold(subject).split())
    for word in _WORD.finditer(sentence):
        rest, name = fold(sentence[word.start() :]), fold(word[0])
        if any(rest == place or rest.startswith(f"{place} ") for place in accepted):
            return True
        if word[0][0].isupper() and name not in _OPENERS and not name.startswith(own_stems):
            return False
    return False
