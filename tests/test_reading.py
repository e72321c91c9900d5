"""Answers in free text are read as a fair person would read them."""

import pytest

from llm_modules.tasks import Problem, get_task

SUM = ("sum", "Find the sum of 47 and 38.", "85")
DIFFERENCE = ("difference", "Subtract 38 from 52.", "14")
PRODUCT = ("product", "What is 12 * 12?", "144")
REMAINDER = ("division", "What is the remainder when 84 is divided by 9?", "3")
QUOTIENT = ("division", "How many whole times does 9 go into 84?", "9")
BOTH = ("division", "Divide 84 by 9 and give the quotient and the remainder.", "9 remainder 3")
LARGER = ("comparison", "Which number is larger, 47 or 38?", "47")
SMALLER = ("comparison", "Which is less: 47 or 38?", "38")
DIVISOR = ("gcd", "Find the greatest common divisor of 84 and 9.", "3")
TWO_STEPS = ("two-step", "What is (47 + 38) - 23?", "62")

RIGHT = {
    SUM: [
        "85",
        "**85**",
        "The sum of 47 and 38 is 85.",
        "85 is the sum of 47 and 38.",
        "The answer is 47 + 38 = 85.",
        "47 + 38 = 40 + 45 = 85",
        "47 + 38 = 85, because 7 + 8 = 15 and 4+3+1=8.",
        "$47 + 38 = \\boxed{85}$",
        "The sum is 85.0",
    ],
    DIFFERENCE: ["52 - 38 = 14", "52−38=14", "Subtracting 38 from 52 is 14.", "The difference is 14"],
    PRODUCT: ["12 × 12 = 144", "12 times 12 is 144.", "12 \\times 12 = 144"],
    REMAINDER: [
        "9 remainder 3",
        "9 R 3",
        "The remainder when 84 is divided by 9 is 3.",
        "84 divided by 9 is 9 with a remainder of 3.",
        "The remainder is 3, because 9 * 9 = 81.",
        "84 = 9 * 9 + 3",
    ],
    QUOTIENT: [
        "9 goes into 84 9 times.",
        "9 with a remainder of 3",
        "84 divided by 9 is 9",
        "84 / 9 = 9 R 3",
        "The quotient is 9 and the remainder is 3.",
    ],
    BOTH: [
        "9 R 3",
        "84 ÷ 9 = 9 remainder 3",
        "The quotient of 84 divided by 9 is 9, with a remainder of 3.",
        "Quotient: 9\nRemainder: 3",
        "The remainder is 3 and the quotient is 9.",
    ],
    LARGER: [
        "47 > 38",
        "38 < 47",
        "47 is larger than 38.",
        "38 is smaller than 47.",
        "47 is the larger number.",
        "Between 47 and 38, the larger is 47.",
    ],
    SMALLER: ["47 > 38", "38 < 47", "47 is larger than 38.", "38 is less than 47."],
    DIVISOR: ["The greatest common divisor of 84 and 9 is 3.", "gcd(84, 9) = 3"],
    TWO_STEPS: ["(47 + 38) - 23 = 62", "47 + 38 = 85, 85 - 23 = 62", "The sum of 47 and 38 is 85. Less 23 gives 62."],
}
WRONG = {
    SUM: ["", "I do not know.", "47", "85.5", "-85", "185", "851", "85%", "The sum of 47 and 38 is 84."],
    DIFFERENCE: ["-14", "52 - 38 = 24"],
    PRODUCT: ["12 * 12 = 124", "1,144"],
    REMAINDER: ["9", "4", "The remainder is 9", "9 remainder 4"],
    QUOTIENT: ["9.33", "84 / 9 = 9.33", "The quotient is 3 and the remainder is 9"],
    BOTH: ["9", "9.33", "3 remainder 9", "Quotient: 3 Remainder: 3"],
    LARGER: ["38", "47 < 38", "38 is larger than 47"],
    SMALLER: ["47", "47 is smaller than 38"],
    DIVISOR: ["1", "84", "The greatest common divisor of 84 and 9 is 9."],
    TWO_STEPS: ["85", "47 + 38 = 85"],
}


def judged(case: tuple[str, str, str], text: str) -> bool:
    kind, question, answer = case
    return get_task("arithmetic").verify(Problem("arithmetic", kind, question, "", answer), text).correct


@pytest.mark.parametrize(("case", "text"), [(case, text) for case, texts in RIGHT.items() for text in texts])
def test_right_answer_is_accepted(case: tuple[str, str, str], text: str) -> None:
    assert judged(case, text)


@pytest.mark.parametrize(("case", "text"), [(case, text) for case, texts in WRONG.items() for text in texts])
def test_wrong_answer_is_refused(case: tuple[str, str, str], text: str) -> None:
    assert not judged(case, text)


@pytest.mark.parametrize("case", RIGHT)
def test_solution_section_is_read_where_there_is_one(case: tuple[str, str, str]) -> None:
    answer = case[2]
    assert judged(case, f"<|begin_of_thought|>1 2 3<|end_of_thought|><|begin_of_solution|>{answer}<|end_of_solution|>")
    assert not judged(case, f"{answer}<|begin_of_solution|>-7<|end_of_solution|>")
