"""Variations of word problems: the same story with a number that does not matter, or asked about something else.

A model that was only ever given the numbers it needs learns to use all of them, whatever is asked (arXiv 2103.07191).
A variation is made of nothing but the problems it is given: another story, or a sentence of it; a thing counted
elsewhere (`12 (A) pens and 7 (B) marbles`); two things of the story, compared or added; or one counted at three times.
It reads as a child might tell it.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_modules.data.records import Conversation
from llm_modules.tasks import marks

MOST_NUMBERS = 6
LONGEST_SENTENCE = 18  # words
LONGEST_STORY = 3  # sentences, of a story that is told beside another
NUM_CANDIDATES = 60  # sentences of other stories, one of which is told
SHARE_ADDED = 0.35  # of two things that are asked about; the others are compared
NEW, NEWER = "Z", "Y"  # the marks of numbers that are put in, until all are marked anew
FIRST_OTHER = ord("P") - ord("A")  # from here on go the marks of another story, until then

_END = re.compile(r"(?<=[.?!])\s+")
_NUMBER = r"-?\d+(?:\.\d+)? \(([A-Z])\)"
_THING = r"((?:[a-z]+ )?[a-z]+s)\b"
_TWO_THINGS = re.compile(rf"{_NUMBER} {_THING} and {_NUMBER} {_THING}")
_DONE = {
    "has": "have", "had": "have", "bought": "buy", "picked": "pick", "made": "make", "found": "find", "sold": "sell",
    "read": "read", "collected": "collect",
}  # fmt: skip
_VERBS = "|".join([*_DONE, "have", "are", "were"])
_ONE_THING = re.compile(rf"\b({_VERBS}) {_NUMBER} {_THING}")
_TIMES = (
    ("on monday", "on tuesday", "on friday"),
    ("in the morning", "in the afternoon", "in the evening"),
    ("last week", "this week", "next week"),
    ("in march", "in april", "in may"),
)
_ASKED = re.compile(r"how many (?:\w+ )?(\w+)")
_THERE = ("are there", "were there", "were there at first", "are there in the beginning")
_QUESTIONS = {
    "+": (
        "how many {many} and {few} {there} ?",
        "how many {many} and {few} {there} in all ?",
        "how many {few} and {many} {there} altogether ?",
    ),
    "-": (
        "how many more {many} than {few} {there} ?",
        "how many fewer {few} than {many} {there} ?",
        "how many more {many} {there} than {few} ?",
    ),
}
_SUMMED = frozenset(re.findall(r"\w+", """
    altogether all total together combined sum things items pieces animals fruits flowers people money
"""))  # fmt: skip
_SMALL = frozenset(re.findall(r"\w+", """
    a an the this that its it he she they we you i his her their our my your him them each every there if in on at to
    of by for from with then now after before while when during and or than more less fewer left last one another some
    is are was were be has have had do does did will how many much into out times hours days weeks years minutes miles
    inches pounds feet
"""))  # fmt: skip


@dataclass(frozen=True)
class _Story:
    """A problem taken apart: what is told, what is asked, the equation, and the numbers by their marks."""

    body: tuple[str, ...]
    question: str
    response: str
    numbers: dict[str, str]

    @classmethod
    def of(cls, asked: str, response: str) -> "_Story":
        *body, question = _END.split(asked.strip())
        return cls(tuple(body), question, response, marks.of(asked))

    @property
    def text(self) -> str:
        return " ".join(self.body)

    @property
    def asked(self) -> str | None:
        """The thing that is asked for, `pens`."""
        found = _ASKED.search(self.question.lower())
        return found and found[1]

    @property
    def is_plain(self) -> bool:
        """Whether each sentence says by itself what it is about, so that others may stand between."""
        named = _words(f"{self.body[0]} {self.question}") - {self.teller}
        return all(_words(sentence) & named for sentence in self.body[1:])

    @property
    def teller(self) -> str | None:
        """Whom the story begins with."""
        first = self.body[0].split()[0]
        return first if first.isalpha() and first.lower() not in _SMALL else None

    def new_number(self, rng: random.Random, *others: str) -> str:
        """A whole number like the story's, and none of them nor of the others."""
        known = {float(number) for number in (*self.numbers.values(), *others)}
        most = max(10, int(max(known, default=0) * 1.3))
        return str(rng.choice([number for number in range(2, most + 2 + len(known)) if number not in known]))


def varied(conversations: Sequence[Conversation], *, seed: int, num: int = 1) -> list[Conversation]:
    """Variations of each word problem whose story allows one.

    Args:
        conversations: A marked question (`marks`) and its equation each; none of them for testing.
        seed: Equal seeds give equal variations.
        num: Most of one problem; no two are equal.
    """
    asked = [(user["content"], assistant["content"]) for user, assistant in conversations]
    variations, rng = Variations(asked), random.Random(seed)
    found = [variations.of(*one, rng=rng) for _ in range(num) for one in asked]
    return [
        [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
        for question, response in dict.fromkeys(filter(None, found))
    ]


class Variations:
    """Makes variations of problems, out of these problems.

    Args:
        problems: Marked questions and their equations.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]):
        stories = [_Story.of(*problem) for problem in problems]
        self._stories = [story for story in stories if story.asked and 0 < len(story.body) <= LONGEST_STORY]
        self._sentences = [
            sentence
            for story in stories
            for sentence in story.body
            if len(marks.of(sentence)) == 1 and len(sentence.split()) <= LONGEST_SENTENCE and " each " not in sentence
        ]
        counted = Counter(
            thing
            for story in stories
            for _, thing in re.findall(rf"{_NUMBER} ([a-z]+s)\b", " ".join([story.text, story.question]))
            if thing not in _SMALL | _SUMMED
        )
        self._things = sorted(thing for thing, times in counted.items() if times > 1)

    def of(self, question: str, response: str, *, rng: random.Random) -> tuple[str, str] | None:
        """One variation of a problem, its question and its equation, or `None` where its story allows none."""
        story = _Story.of(question, response)
        if not story.body or len(story.numbers) >= MOST_NUMBERS:
            return None
        kinds = [self._with_story, self._with_story, self._with_sentence, self._with_thing, self._with_thing]
        kinds += [self._asked_otherwise, self._at_times]
        for kind in rng.sample(kinds, len(kinds)):
            new = kind(story, rng)
            renamed = new and marks.renamed(" ".join([new.text, new.question]), new.response)
            if renamed:
                return renamed
        return None

    def _with_story(self, story: _Story, rng: random.Random) -> _Story | None:
        """A whole story of something else beside it, which the question alone tells apart."""
        asked = story.asked
        if asked is None or not self._stories:
            return None
        other = rng.choice(self._stories)
        if (
            other.asked is None
            or not marks.of(other.text)
            or len(story.numbers) + len(other.numbers) > MOST_NUMBERS
            or other.asked in story.text
            or asked in other.text
            or (_words(story.question) & _words(other.text)) - {story.teller}
        ):
            return None
        text = [
            re.sub(_NUMBER, lambda found: found[0][:-2] + chr(ord(found[1]) + FIRST_OTHER) + ")", sentence)
            for sentence in other.body
        ]
        if story.teller and other.teller and rng.random() < 0.5:
            text = [re.sub(rf"\b{re.escape(other.teller)}\b", story.teller, sentence) for sentence in text]
        parts = [list(story.body), text]
        order = [0] * len(story.body) + [1] * len(text)
        rng.shuffle(order)
        if not (story.is_plain and other.is_plain):  # the one that begins is told to its end
            order.sort(reverse=order[0] == 1)
        return replace(story, body=tuple(parts[part].pop(0) for part in order))

    def _with_sentence(self, story: _Story, rng: random.Random) -> _Story | None:
        """A sentence of another story, about the same person, of nothing that is asked for."""
        teller, asked = story.teller, story.asked
        if asked is None:
            return None
        others = rng.sample(self._sentences, min(NUM_CANDIDATES, len(self._sentences)))
        told = _words(story.text)
        apart = [one for one in others if not (_words(one) - {teller}) & _words(story.question) and asked not in one]
        if not apart:
            return None
        near = max(apart, key=lambda one: len(_words(one) & told))
        sentence = near if rng.random() < 0.5 else rng.choice(apart)
        first = sentence.split()[0]
        if teller and first.isalpha() and first.lower() not in _SMALL:
            sentence = teller + sentence[len(first) :]
        sentence = re.sub(_NUMBER, f"{story.new_number(rng)} ({NEW})", sentence)
        place = rng.randint(0, len(story.body))
        return replace(story, body=(*story.body[:place], sentence, *story.body[place:]))

    def _with_thing(self, story: _Story, rng: random.Random) -> _Story | None:
        """Something else, counted beside the thing that is asked for."""
        asked, thing = story.asked, self._other_thing(story, rng)
        if asked is None or thing is None or asked in _SUMMED or _words(story.question) & (_SUMMED - {"all", "total"}):
            return None
        places = [*re.finditer(rf"{_NUMBER} (?:[a-z]+ )?{re.escape(asked)}\b", story.text)]
        if not places:
            return None
        place, number = rng.choice(places), f"{story.new_number(rng)} ({NEW})"
        return replace(story, body=(_beside(story.text, place, f"{number} {thing}", first=rng.random() < 0.5),))

    def _asked_otherwise(self, story: _Story, rng: random.Random) -> _Story | None:
        """Two things that the story counts, compared or added."""
        text, both = story.text, _TWO_THINGS.search(story.text)
        numbers = dict(story.numbers)
        if both:
            pairs = [(both[1], both[2]), (both[3], both[4])]
        else:
            one, thing = _ONE_THING.search(story.text), self._other_thing(story, rng)
            if one is None or thing is None:
                return None
            numbers[NEW] = story.new_number(rng)
            text = _beside(text, one, f"{numbers[NEW]} ({NEW}) {thing}", first=False)
            pairs = [(one[2], one[3]), (NEW, thing)]
        (more, many), (less, few) = sorted(pairs, key=lambda pair: -float(numbers[pair[0]]))
        if many == few or float(numbers[more]) == float(numbers[less]) or _SMALL & {*many.split(), *few.split()}:
            return None
        there = rng.choice(_THERE)
        sign = "+" if rng.random() < SHARE_ADDED else "-"
        question = rng.choice(_QUESTIONS[sign]).format(many=many, few=few, there=there)
        return replace(story, body=(text,), question=question, response=f"{more}{sign}{less}")

    def _at_times(self, story: _Story, rng: random.Random) -> _Story | None:
        """What the story begins by counting, at three times, two of which are compared or added."""
        counted = _ONE_THING.search(story.body[0])
        if counted is None or counted[1] not in _DONE or story.teller is None or len(marks.of(story.body[0])) > 1:
            return None
        thing, number = counted[3], story.numbers[counted[2]]
        new = story.new_number(rng)
        newer = story.new_number(rng, new)
        numbers = {counted[2]: number, NEW: new, NEWER: newer}
        times = rng.choice(_TIMES)
        told = [f"{numbers[mark]} ({mark}) {thing} {time}" for mark, time in zip(numbers, times, strict=True)]
        body = f"{story.body[0][: counted.start()]}{counted[1]} {told[0]} , {told[1]} and {told[2]} ."
        (more, then), (less, before) = sorted(
            rng.sample([*zip(numbers, times, strict=True)], 2), key=lambda at: -float(numbers[at[0]])
        )
        did = f"did {story.teller} {_DONE[counted[1]]}"
        if rng.random() < SHARE_ADDED:
            question, response = f"how many {thing} {did} {then} and {before} ?", f"{more}+{less}"
        else:
            question, response = f"how many more {thing} {did} {then} than {before} ?", f"{more}-{less}"
        return replace(story, body=(body,), question=question, response=response)

    def _other_thing(self, story: _Story, rng: random.Random) -> str | None:
        """One that the story does not name."""
        thing = rng.choice(self._things) if self._things else None
        return None if thing is None or thing in f"{story.text} {story.question}" else thing


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z]+", text.lower()) if word not in _SMALL}


def _beside(text: str, place: re.Match[str], new: str, *, first: bool) -> str:
    """A text with something counted before or behind what stands in a place, and an `and` between them."""
    if first:
        return f"{text[: place.start()]}{new} and {text[place.start() :]}"
    return f"{text[: place.end()]} and {new}{text[place.end() :]}"
