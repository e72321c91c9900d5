"""What the texts of the task `tickets` are made of; every third entry of everything is held out for tests.

The words stand in `words/`, one file for each vocabulary. They are many because a few dozen are learnt by heart: a
model then writes the names it knows instead of copying the one it reads.
"""

from dataclasses import dataclass
from importlib.resources import files

_FOLDER = files("llm_modules.tasks") / "words"


@dataclass(frozen=True)
class Vocabulary:
    """Words or templates of one sort, in two parts that share nothing.

    Args:
        entries: All of them, different from each other.
    """

    entries: tuple[str, ...]

    def part(self, *, held_out: bool) -> tuple[str, ...]:
        """Every third entry, which tests are written with, or the others."""
        return tuple(entry for place, entry in enumerate(self.entries) if (place % 3 == 2) == held_out)


def _lines(name: str) -> Vocabulary:
    """Of a file with one entry a line, in alphabetical order, so that neither part gets more of one kind."""
    return Vocabulary(tuple((_FOLDER / f"{name}.txt").read_text("utf-8").splitlines()))


def _templates(name: str) -> Vocabulary:
    """Of a file whose entries stand between lines of `---`; layouts of a kind (mail, form) in a row, likewise."""
    return Vocabulary(tuple((_FOLDER / f"{name}.txt").read_text("utf-8").strip().split("\n---\n")))


FIRST_NAMES = _lines("first_names")
SURNAMES = _lines("surnames")
TOWNS = _lines("towns")
PRODUCTS = _lines("products")
COMPANIES = _lines("companies")
COMPANY_ENDINGS = _lines("company_endings")

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
DATES = Vocabulary((
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{day}. {month} {year}",
    "{year}-{mm}-{day:02}",
    "{day:02} {month} {year}",
    "{month} {day} of {year}",
    "{day} {month:.3} {year}",  # Jan, Feb, ...
    "{year}/{mm}/{day:02}",
    "{day:02}-{month:.3}-{year}",
    "{year}, {month} {day}",
    "{month:.3} {day}, {year}",
    "{year} {month} {day:02}",
))  # fmt: skip
CURRENCIES = {"EUR": ("EUR", "€", "euros"), "USD": ("USD", "US$", "US dollars"), "GBP": ("GBP", "£", "pounds sterling")}

ISSUES = {
    kind: _lines(f"issue_{kind.replace(' ', '_')}")
    for kind in ("damaged", "late", "wrong item", "defective", "billing")
}
REQUESTS = {kind: _lines(f"request_{kind}") for kind in ("refund", "replacement", "information")}

TICKETS = _templates("tickets")
TICKETS_WITHOUT_ORDER = _templates("tickets_without_order")
INVOICES = _templates("invoices")
