"""The task `tickets`: support tickets and invoices, to be turned into JSON fields.

Every text is a template filled with words. A third of the templates and of every vocabulary (names, products, towns,
companies, ways to say a complaint or a wish) is held out: tests are written with these alone, training never.
"""

import datetime
import json
import random
import string
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

from llm_modules.tasks import ticket_words as words
from llm_modules.tasks.base import Problem, Verdict
from llm_modules.tasks.json_fields import compare, is_object, read_object

NUM_TRAIN, NUM_TEST = 4000, 200

QUESTIONS = {
    "ticket": "Turn this support ticket into JSON with the fields customer, order, product, issue ({issues}) and "
    "request ({requests}); null for what it does not say.\n\n{text}",
    "invoice": "Turn this invoice into JSON with the fields supplier, invoice, date (YYYY-MM-DD), currency "
    "({currencies}) and total.\n\n{text}",
}
_CHOICES = {
    "issues": ", ".join(words.ISSUES),
    "requests": ", ".join(words.REQUESTS),
    "currencies": ", ".join(words.CURRENCIES),
}


class Tickets:
    """Support tickets and invoices, made up; the answer is right if every field is, and has the form if it is JSON."""

    name = "tickets"
    kinds = ("ticket", "invoice")
    num_shots: int | None = None

    def train(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Different texts in the words and templates for training."""
        return _problems(num_examples or NUM_TRAIN, held_out=False, rng=random.Random(f"train {seed}"))

    def test(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Different texts in held-out words and templates, as many tickets as invoices."""
        return _problems(num_examples or NUM_TEST, held_out=True, rng=random.Random(f"test {seed}"))

    def few_shot_prompt(self, problem: Problem, num_examples: int, *, seed: int) -> list[dict[str, str]] | str:
        """Training texts of the same kind as earlier turns."""
        rng = random.Random(f"shots {seed}")
        shots = [_DRAWS[problem.kind](rng, False) for _ in range(num_examples)]
        return [turn for shot in shots for turn in shot.messages()] + problem.messages()[:1]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Compare the first JSON object of `text` field by field; the form asks that nothing stands beside it."""
        said = read_object(text)
        fields = compare(said or {}, json.loads(problem.answer))
        correct = said is not None and all(field.right or not (field.wanted or field.said) for field in fields)
        return Verdict(correct=correct, form=is_object(text), fields=fields)


def _problems(num_examples: int, *, held_out: bool, rng: random.Random) -> list[Problem]:
    drawn: dict[str, Problem] = {}
    for kind in islice(cycle(Tickets.kinds), num_examples):
        size = len(drawn)
        while len(drawn) == size:  # the same text twice is rare: order and invoice numbers are drawn
            problem = _DRAWS[kind](rng, held_out)
            drawn.setdefault(problem.question, problem)
    problems = list(drawn.values())
    rng.shuffle(problems)
    return problems


def _problem(kind: str, text: str, fields: dict[str, Any]) -> Problem:
    answer = json.dumps(fields, ensure_ascii=False)
    return Problem("tickets", kind, QUESTIONS[kind].format(text=text, **_CHOICES), answer, answer)


def _draw_ticket(rng: random.Random, held_out: bool) -> Problem:
    def pick(vocabulary: words.Vocabulary) -> str:
        return rng.choice(vocabulary.part(held_out=held_out))

    issue, request = rng.choice(list(words.ISSUES)), rng.choice(list(words.REQUESTS))
    customer = f"{pick(words.FIRST_NAMES)} {pick(words.SURNAMES)}"
    product = pick(words.PRODUCTS)
    order = f"{_letters(rng, 2)}-{rng.randrange(10_000, 100_000)}" if rng.random() < 0.8 else None
    template = pick(words.TICKETS if order else words.TICKETS_WITHOUT_ORDER)
    complaint, wish = pick(words.ISSUES[issue]), pick(words.REQUESTS[request])
    text = template.format(
        customer=customer,
        product=product,
        order=order,
        town=pick(words.TOWNS),
        complaint=complaint,
        Complaint=_begun(complaint),
        wish=wish,
        Wish=_begun(wish),
    )
    fields = {"customer": customer, "order": order, "product": product, "issue": issue, "request": request}
    return _problem("ticket", text, fields)


def _draw_invoice(rng: random.Random, held_out: bool) -> Problem:
    def pick(vocabulary: words.Vocabulary) -> str:
        return rng.choice(vocabulary.part(held_out=held_out))

    supplier = f"{pick(words.COMPANIES)} {pick(words.COMPANY_ENDINGS)}"
    number = f"{_letters(rng, 1)}{rng.randrange(1_000, 10_000)}/{rng.randrange(10, 100)}"
    date = datetime.date(2020, 1, 1) + datetime.timedelta(days=rng.randrange(2_000))
    currency = rng.choice(list(words.CURRENCIES))
    quantity, cents = rng.randrange(2, 20), rng.randrange(500, 20_000)
    net = quantity * cents
    tax = round(net * rng.choice((7, 10, 19, 20)) / 100)
    text = pick(words.INVOICES).format(
        supplier=supplier,
        number=number,
        date=_dated(date, pick(words.DATES)),
        customer=f"{pick(words.FIRST_NAMES)} {pick(words.SURNAMES)}",
        town=pick(words.TOWNS),
        quantity=quantity,
        product=pick(words.PRODUCTS),
        price=_money(cents),
        net=_money(net),
        tax=_money(tax),
        total=_money(net + tax),
        currency=rng.choice(words.CURRENCIES[currency]),
    )
    fields = {
        "supplier": supplier,
        "invoice": number,
        "date": date.isoformat(),
        "currency": currency,
        "total": (net + tax) / 100,
    }
    return _problem("invoice", text, fields)


_DRAWS: dict[str, Callable[[random.Random, bool], Problem]] = {"ticket": _draw_ticket, "invoice": _draw_invoice}


def _letters(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=length))


def _begun(clause: str) -> str:
    """As the beginning of a sentence."""
    return clause[0].upper() + clause[1:]


def _money(cents: int) -> str:
    return f"{cents / 100:,.2f}"


def _dated(date: datetime.date, form: str) -> str:
    # Not by strftime: month names would follow the machine's locale.
    return form.format(day=date.day, month=words.MONTHS[date.month - 1], mm=f"{date.month:02}", year=date.year)


TASK = Tickets()
