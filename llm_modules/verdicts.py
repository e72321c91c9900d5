"""What the demo's figures show and what they do not, in sentences, derived from the figures by rule.

The rules: a bar is reached at or above it, a limit is kept at or below it. Two accuracies differ only where their 95 %
intervals lie apart. Accuracies are compared as counts, and no figure is rounded onto the other side of its bar.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Results = dict[str, Any]
ACCURACY_BAR, FORM_BAR = Fraction(80, 100), Fraction(98, 100)
SOURCE_SHARE_BAR = Fraction(80, 100)
SPEED_BAR = 4
MINUTES_LIMIT, ARITHMETIC_MINUTES_LIMIT, MEMORY_LIMIT_GB = 25, 8, 6


@dataclass(frozen=True)
class Finding:
    """A sentence on what the figures say.

    Args:
        shown: Whether they show what the demo set out to show.
        text: The sentence.
    """

    shown: bool
    text: str


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers as an exact fraction (0.8 * 0.75 > 0.6 in floating point), with its interval."""

    share: Fraction
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, score: Results, relation: str | None = None) -> "Accuracy":
        """Read one entry of the results, of one relation where its figures are kept per relation."""
        value, (low, high), n = (score[key] if relation is None else score[key][relation] for key in _SCORE_KEYS)
        return cls(counted(value, n), low, high, n)

    def overlaps(self, other: "Accuracy") -> bool:
        """Whether the intervals share a point; touching is sharing."""
        return self.low <= other.high and other.low <= self.high

    def is_above(self, other: "Accuracy") -> bool:
        """Whether this interval lies wholly above the other."""
        return self.low > other.high

    def __str__(self) -> str:
        return percent(self.share)


_SCORE_KEYS = ("exact_match", "interval", "n")


def verdicts(results: Results) -> list[str]:
    """Say plainly what was shown and what was not, a sentence each."""
    return [finding.text for finding in findings(results)]


def findings(results: Results) -> list[Finding]:
    """Derive all sentences: arithmetic, facts relation by relation, speed, limits, and what no single run can show."""
    relations = results["facts"][0]["exact_match"]
    return [
        *_on_arithmetic(results),
        _on_rewording(results),
        *(_on_facts(results, relation) for relation in relations),
        *_on_speed(results),
        _on_limits(results),
        Finding(False, "This was one training run with one seed: how far its figures move with the seed is not shown."),
    ]


def counted(share: float, n: int) -> Fraction:
    """The exact share of `n` that a float stands for."""
    return Fraction(round(share * n), n)


def percent(share: Fraction | float, bar: Fraction | float | None = None) -> str:
    """Spell a share as a percentage, on the side of the bar it is on."""
    return f"{beside(float(share) * 100, None if bar is None else float(bar) * 100)}%"


def beside(value: float, bar: float | None = None, decimals: int = 1) -> str:
    """Spell a number with as few decimals, from `decimals` on, as keep it on its own side of the bar."""
    spelled = f"{value:.{decimals}f}"
    while bar is not None and _side(float(spelled), bar) != _side(value, bar) and decimals < 15:
        decimals += 1
        spelled = f"{value:.{decimals}f}"
    return spelled


def _reaches(is_reached: bool) -> str:
    return "reaches" if is_reached else "misses"


def _side(value: float, bar: float) -> int:
    return (value > bar) - (value < bar)


def _on_arithmetic(results: Results) -> list[Finding]:
    scores = {model["model"]: model for model in results["models"]}
    accuracy = {name: Accuracy.of(score) for name, score in scores.items()}
    pair, generator = accuracy["pair"], accuracy["generator"]
    form = counted(scores["pair"]["form"], pair.n)
    source = max(accuracy["source"], accuracy["source-few-shot"], key=lambda each: each.share)
    is_exact, is_formed = pair.share >= ACCURACY_BAR, form >= FORM_BAR
    below = "; its interval goes below that" if is_exact and pair.low < ACCURACY_BAR else ""
    right = sum(question["correct"] for question in results["paper_questions"])
    asked = len(results["paper_questions"])
    return [
        Finding(
            is_exact,
            f"The pair solves {percent(pair.share, ACCURACY_BAR)} of {pair.n} held-out arithmetic problems, which "
            f"{_reaches(is_exact)} the bar of {float(ACCURACY_BAR):.0%}{below}.",
        ),
        Finding(
            is_formed,
            f"{percent(form, FORM_BAR)} of its answers have the required form, which {_reaches(is_formed)} the bar of "
            f"{float(FORM_BAR):.0%}.",
        ),
        Finding(right == asked, f"Of the paper's {asked} questions the pair answers {right} right."),
        _better_than_source(pair, source),
        _source_helps(pair, generator),
    ]


def _better_than_source(pair: Accuracy, source: Accuracy) -> Finding:
    figures = f"({pair} vs {source} at its better prompt; intervals {_overlap_or_apart(pair, source)})"
    return _held_against(
        source,
        pair,
        above=f"The pair does better on arithmetic than the source it reads {figures}.",
        below=f"The source by itself does better on arithmetic than the pair {figures}.",
        same=f"The source by itself does as well on arithmetic as the pair {figures}.",
    )


def _source_helps(pair: Accuracy, generator: Accuracy) -> Finding:
    figures = f"({generator} vs {pair} of the pair; intervals {_overlap_or_apart(pair, generator)})"
    alone = "The generator alone, without the source, does"
    return _held_against(
        generator,
        pair,
        above=f"{alone} worse on arithmetic {figures}: the source helps there.",
        below=f"{alone} better on arithmetic {figures}: the source hurts there.",
        same=f"{alone} as well on arithmetic {figures}: the source does not help there.",
    )


def _on_rewording(results: Results) -> Finding:
    accuracy = {score["model"]: Accuracy.of(score) for score in results["reworded"]}
    pair, generator = accuracy["pair"], accuracy["generator"]
    asked = f"Asked in words that training never shows ({pair.n} problems), the pair is"
    figures = f"({pair} vs {generator}; intervals {_overlap_or_apart(pair, generator)})"
    return _held_against(
        generator,
        pair,
        above=f"{asked} right more often than the generator alone {figures}: the source helps there.",
        below=f"{asked} right less often than the generator alone {figures}.",
        same=f"{asked} not clearly right more often than the generator alone {figures}.",
    )


def _held_against(other: Accuracy, pair: Accuracy, *, above: str, below: str, same: str) -> Finding:
    """Which of three sentences the intervals allow; only a pair above the other shows something."""
    if pair.is_above(other):
        return Finding(True, above)
    return Finding(False, below if other.is_above(pair) else same)


def _overlap_or_apart(one: Accuracy, other: Accuracy) -> str:
    return "overlap" if one.overlaps(other) else "apart"


def _on_facts(results: Results, relation: str) -> Finding:
    accuracy = {score["model"]: Accuracy.of(score, relation) for score in results["facts"]}
    pair, few_shot, generator = accuracy["pair"], accuracy["source-few-shot"], accuracy["generator"]
    zeroed = Accuracy.of(results["facts_controls"]["pair-zeroed"], relation)
    chance = results["facts_controls"]["chance"][relation]
    reaches, share = _share_of_source(pair, few_shot)
    is_apart = pair.is_above(generator)
    is_silenced = zeroed.low <= max(chance, 1 / zeroed.n)  # n questions do not tell chance finer than one answer
    shown = reaches and is_apart and is_silenced
    if is_apart:
        against = f"clearly above the generator alone ({generator})"
    elif generator.is_above(pair):
        against = f"below the generator alone ({generator})"
    else:
        against = f"not clearly above the generator alone ({generator}; intervals overlap)"
    silenced = "falls to chance" if is_silenced else "stays above chance"
    return Finding(
        shown,
        f"Facts, {relation}: {'knowledge passes' if shown else 'that knowledge passes is not fully shown'}. "
        f"The pair ({pair}) {share}, is {against}, and {silenced} ({percent(chance)}) with zeroed states ({zeroed}).",
    )


def _share_of_source(pair: Accuracy, few_shot: Accuracy) -> tuple[bool, str]:
    """Whether the pair reaches its share of what the source itself knows, and how that is said."""
    if few_shot.share == 0:
        return False, "has no bar to reach, as the source itself gets none right"
    share = pair.share / few_shot.share
    reaches = share >= SOURCE_SHARE_BAR
    return reaches, (
        f"has {percent(share, SOURCE_SHARE_BAR)} of the source's few-shot accuracy ({few_shot}; "
        f"{_reaches(reaches)} the bar of {float(SOURCE_SHARE_BAR):.0%})"
    )


def _on_speed(results: Results) -> list[Finding]:
    speed, ratio = results["speed"], results["speed_vs_source"]
    causal = beside(ratio["causal"], 1, decimals=2)
    is_fast, is_faster = ratio["prompt"] >= SPEED_BAR, ratio["causal"] > 1
    return [
        Finding(
            is_fast,
            f"With prompt visibility the pair writes {beside(ratio['prompt'], SPEED_BAR)} times the source's tokens "
            f"per second ({speed['prompt']:.1f} vs {speed['source']:.1f}), which {_reaches(is_fast)} the bar of "
            f"{SPEED_BAR}.",
        ),
        Finding(
            is_faster,
            f"With causal visibility the pair writes {causal} times the source's tokens per second "
            f"({speed['causal']:.1f}): {'faster than the source' if is_faster else 'no gain in speed'}.",
        ),
    ]


def _on_limits(results: Results) -> Finding:
    spent = [
        ("the whole run", results["minutes"], MINUTES_LIMIT, "minutes"),
        ("the arithmetic pair", results["arithmetic_minutes"], ARITHMETIC_MINUTES_LIMIT, "minutes"),
        ("memory", results["peak_memory_gb"], MEMORY_LIMIT_GB, "GB"),
    ]
    said = {what: f"{what} {beside(value, limit)} of {limit} {unit}" for what, value, limit, unit in spent}
    over = [said.pop(what) for what, value, limit, _ in spent if value > limit]
    kept = ", ".join(said.values())
    if not over:
        return Finding(True, f"All limits are kept: {kept}.")
    return Finding(False, f"Over the limit: {', '.join(over)}." + (f" Within it: {kept}." if kept else ""))
