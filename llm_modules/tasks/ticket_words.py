"""What the texts of the task `tickets` are made of; every third entry of everything is held out for tests."""

from dataclasses import dataclass


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


def _words(text: str) -> Vocabulary:
    return Vocabulary(tuple(word.strip() for word in text.split(",")))


def _templates(text: str) -> Vocabulary:
    return Vocabulary(tuple(template.strip() for template in text.split("---")))


FIRST_NAMES = _words(
    "Amelia, Bruno, Celeste, Dmitri, Elena, Farid, Greta, Hiroshi, Ingrid, Jamal, Katya, Leopold, Mireille, Nadia, "
    "Oskar, Priya, Quentin, Rosalind, Stefan, Tamara, Umberto, Valentina, Wendell, Ximena, Yusuf, Zelda, Alistair, "
    "Beatrix, Cosmo, Delphine, Emeka, Fiona, Gideon, Helga, Ivo, Jasmine"
)
SURNAMES = _words(
    "Abernathy, Bergstrom, Castellano, Dubrovsky, Eriksen, Fontaine, Galloway, Hashimoto, Iyengar, Jankowski, "
    "Kowalczyk, Lindqvist, Moreau, Nakamura, Okonkwo, Papadakis, Quigley, Rasmussen, Silvestri, Thorvald, "
    "Ulrich, Vandermeer, Whitcombe, Xanthos, Yamada, Zielinski, Ashdown, Brandt, Calloway, Delacroix, "
    "Engelhardt, Ferreira, Grimaldi, Hargreaves, Ibarra, Jorgensen"
)
TOWNS = _words(
    "Lisbon, Gdansk, Utrecht, Bergen, Zagreb, Cork, Leipzig, Turin, Malmo, Bilbao, Ghent, Salzburg, Tampere, Valencia, "
    "Bristol, Krakow, Lyon, Porto, Aarhus, Basel, Dundee, Graz, Rotterdam, Seville"
)
PRODUCTS = _words(
    "espresso machine, desk lamp, hiking boots, bread toaster, wall clock, rain jacket, garden hose, coffee grinder, "
    "yoga mat, picture frame, wireless headphones, camping stove, electric kettle, bookshelf, tennis racket, "
    "hair dryer, travel pillow, fountain pen, bicycle helmet, kitchen scale, table fan, sewing kit, dog leash, "
    "alarm radio, ice skates, laundry basket, paint roller, reading glasses, snow shovel, chess board, "
    "violin strings, water filter, umbrella stand, tool chest, silk scarf, vacuum cleaner"
)
COMPANIES = _words(
    "Northwind, Alderbrook, Silverfern, Bluegate, Oakhaven, Redstone, Brightwater, Stonebridge, Greenfield, Ironvale, "
    "Maplecrest, Foxglove, Lakeshore, Cedarline, Goldcrest, Rivermark, Pinewood, Thornbury, Westbrook, Copperfield, "
    "Larkspur, Highmoor, Ashgrove, Summerhill"
)
COMPANY_ENDINGS = _words("Ltd, GmbH, Trading, Brothers, Supplies, Partners, & Sons, Wholesale, Workshop")

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
))  # fmt: skip
CURRENCIES = {"EUR": ("EUR", "€", "euros"), "USD": ("USD", "US$", "US dollars"), "GBP": ("GBP", "£", "pounds sterling")}

ISSUES = {
    "damaged": Vocabulary((
        "it arrived with a crack across the front",
        "the box was crushed and the contents were in pieces",
        "it was shattered when it reached me",
        "it came scratched all over",
        "one corner was bent when I unpacked it",
        "there was a deep dent in its side when I opened the parcel",
    )),
    "late": Vocabulary((
        "it should have been here a week ago",
        "it has still not been delivered",
        "I am waiting for it long after the promised day",
        "the parcel has been stuck on its way for ten days",
        "two delivery dates have passed without a parcel",
        "nobody has brought it, although it was due last Monday",
    )),
    "wrong item": Vocabulary((
        "I was sent something else entirely",
        "the colour is not the one I chose",
        "what I unpacked belongs to somebody else's purchase",
        "the parcel held an article that I never asked for",
        "it is not the size that I picked",
        "you shipped me a different model",
    )),
    "defective": Vocabulary((
        "it stops working after a minute",
        "it does not do what it should any more",
        "it failed on the third day without any reason",
        "it worked once and never again",
        "it makes a loud noise and then gives up",
        "nothing happens however I use it",
    )),
    "billing": Vocabulary((
        "my card was charged twice",
        "the price on the bill is higher than in the shop",
        "I paid more than the amount you quoted me",
        "a discount I was promised is missing from the bill",
        "you charged me for two of them",
        "the same payment was taken from my account two times",
    )),
}  # fmt: skip
REQUESTS = {
    "refund": Vocabulary((
        "please send my money back",
        "I want a refund",
        "I would like to be reimbursed",
        "kindly return what I paid",
        "give me back what it cost",
        "the sum should go back to my account",
    )),
    "replacement": Vocabulary((
        "please send a new one",
        "I would like a replacement",
        "ship me another in its place",
        "please exchange it",
        "I want the right one instead",
        "swap it for one that is as it should be",
    )),
    "information": Vocabulary((
        "please tell me what happens next",
        "let me know how this will be settled",
        "give me an update, nothing more",
        "I only want to know where things stand",
        "please explain how this came about",
        "write to me what you have found out",
    )),
}  # fmt: skip

TICKETS = _templates("""
Hello,
I bought a {product} from you (order {order}) and {complaint}. {Wish}.
Regards, {customer}
---
Order number: {order}
Article: {product}

{Complaint}. {Wish}.

{customer}, {town}
---
To whom it may concern: my name is {customer}. About purchase {order}, one {product}, I must say that {complaint}.
So {wish}.
---
Hi, this is {customer} from {town}. {Complaint}! It is about the {product}, order {order}. {Wish}.
---
Subject: {product}
From: {customer}

Good morning, {complaint}. The order is {order}. {Wish}, thank you.
---
Customer {customer} rang up today. Reference {order}. Says of the {product}: "{complaint}". Their wish: "{wish}".
---
{customer} here. {Wish}: {complaint}. You will find it under {order} ({product}).
---
Dear team, on my {product} with order {order}: {complaint}. Could you help? {Wish}.
Best wishes
{customer}
{town}
---
{order}. That is the case I write about. With the {product} there is this trouble: {complaint}. My request is simple,
{wish}. Signed: {customer}
""")
TICKETS_WITHOUT_ORDER = _templates("""
Hello, I lost the number of my order, but it was a {product}, and {complaint}. {Wish}. {customer}
---
From: {customer}, {town}

The {product}: {complaint}. {Wish}.
---
No order number at hand, sorry! {Complaint} (I mean the {product}). {Wish}. Yours, {customer}
---
My name is {customer}. I am unhappy with your {product} because {complaint}. {Wish}.
---
{Wish}, since {complaint}. The article was a {product}. Thanks, {customer} in {town}
---
Without papers I can only tell you the article, a {product}, and who I am, {customer}. {Complaint}. Now {wish}.
""")
INVOICES = _templates("""
{supplier}
Invoice {number}
{date}

{quantity} x {product} at {price}
Net {net}
Tax {tax}
Total {total} {currency}

To: {customer}, {town}
---
INVOICE no. {number} of {date}
Sold by {supplier} to {customer}
{product}: {quantity} pieces, {price} each
subtotal {net}, VAT {tax}
Amount due: {currency} {total}
---
{date}. {supplier} bills {customer} of {town} as follows. Document: {number}. Goods: {quantity} of {product}, {net}
before tax of {tax}. Payable in all: {total} {currency}.
---
Bill to: {customer}
Bill from: {supplier}
Number: {number}
Dated: {date}

{product} ({quantity}) ... {net}
tax ... {tax}
sum in {currency} ... {total}
---
Dear {customer},
for {quantity} units of our {product} at {price} we charge {net} plus {tax} VAT, which makes {currency} {total}.
Invoice {number}, {town}, {date}
{supplier}
---
Ref {number} | {date} | {supplier}
recipient {customer}
{quantity} | {product} | {price} | {net}
VAT | {tax}
to pay | {total} | {currency}
---
{supplier} - invoice
We thank {customer} for the order of {quantity} {product}.
Number {number}, issued {date}.
Total with tax ({tax}): {total} {currency}
---
{number}
{date}
{supplier}
{customer}
{town}

{product}
{quantity} * {price}
{net} + {tax} = {total}
all amounts in {currency}
---
On {date} the firm {supplier} delivered {quantity} of the article {product} to {customer} in {town}. It asks for
{total} ({currency}), tax of {tax} included, on invoice {number}.
""")
