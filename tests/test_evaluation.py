"""Shares come with honest intervals, and every answer is counted where it belongs."""

import json

import pytest

from llm_modules.evaluation import Score, evaluate, judge, tally
from llm_modules.tasks import Problem, Verdict
from llm_modules.writing import Writing
from tests.conftest import tiny_pair, tiny_tokenizer


class Echo:
    """A task whose right answers are the words of `answer`, in form if they end with a full stop."""

    name = "echo"
    kinds = ("letters", "figures")

    def verify(self, problem, text):
        return Verdict(correct=text.rstrip(".") == problem.answer, form=text.endswith("."))


PROBLEMS = [
    Problem("echo", kind, f"say {answer}", answer, answer)
    for kind, answer in [("letters", "a"), ("figures", "1"), ("letters", "b"), ("letters", "c"), ("figures", "2")]
]
ANSWERS = Writing(["a.", "1", "x.", "c.", "3"], num_tokens=30, seconds=2.0)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe (1998), table I, method 3; the others by hand from Wilson's formula
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0000),
        (0, 1, 0.0000, 0.7935),
        (100, 200, 0.4314, 0.5686),
    ],
)
def test_interval_is_wilsons(hits, n, low, high):
    assert Score(hits, n).interval == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 7, 200])
def test_interval_stays_within_bounds_and_holds_the_share(n):
    for hits in range(n + 1):
        score = Score(hits, n)
        low, high = score.interval
        assert 0 <= low <= score.value <= high <= 1 and low < high


def test_interval_narrows_with_n():
    widths = [Score(n // 2, n).interval[1] - Score(n // 2, n).interval[0] for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)


def test_score_prints_share_interval_and_counts():
    assert str(Score(81, 263)) == "30.8% (26%–37%), 81/263"


def test_verdicts_are_counted_in_all_and_by_kind():
    found = judge(Echo(), PROBLEMS, ANSWERS)
    assert found.exact == Score(3, 5)
    assert found.form == Score(3, 5)
    assert found.by_kind == {"figures": Score(1, 2), "letters": Score(2, 3)}
    assert [(text, correct) for _, text, correct in found.answers()] == [
        ("a.", True),
        ("1", True),
        ("x.", False),
        ("c.", True),
        ("3", False),
    ]
    assert [problem for problem, _, _ in found.answers()] == PROBLEMS


def test_part_counts_some_of_the_problems_only():
    whole = judge(Echo(), PROBLEMS, ANSWERS)
    first, rest = whole.part(0, 2), whole.part(2, 5)
    assert (first.exact, rest.exact) == (Score(2, 2), Score(1, 3))
    assert rest.by_kind == {"figures": Score(0, 1), "letters": Score(1, 2)}
    assert [text for _, text, _ in rest.answers()] == ["x.", "c.", "3"]
    assert first.writing.tokens_per_s == whole.writing.tokens_per_s == 15.0


def test_tally_of_parts_is_that_of_the_whole():
    whole = judge(Echo(), PROBLEMS, ANSWERS)
    assert tally(PROBLEMS, whole.verdicts, ANSWERS) == whole


def test_figures_go_into_json():
    fields = json.loads(json.dumps(judge(Echo(), PROBLEMS, ANSWERS).as_dict()))
    assert fields["exact_match"] == 0.6 and fields["n"] == 5 and fields["form"] == 0.6
    assert fields["interval"] == pytest.approx([0.2307, 0.8824], abs=1e-4)
    assert fields["tokens_per_s"] == 15.0
    assert fields["by_kind"]["figures"]["n"] == 2


def test_number_of_answers_must_be_that_of_the_problems():
    with pytest.raises(ValueError, match="zip"):
        judge(Echo(), PROBLEMS[:-1], ANSWERS)


def test_model_is_asked_every_problem_in_its_chat_template():
    model, tokenizer, asked = tiny_pair(), tiny_tokenizer(), []
    whole = model.generate
    model.generate = lambda ids, **kwargs: asked.extend(tokenizer.batch_decode(ids)) or whole(ids, **kwargs)
    found = evaluate(model, Echo(), PROBLEMS, tokenizer, max_new_tokens=3)
    assert found.exact.n == 5 and len(found.writing.texts) == 5
    assert len(asked) == 5 and all(text.endswith("Assistant :") for text in asked)
    assert any("User : <unk> a" in text for text in asked)
