"""`python -m benchmarks.training_speed`: training a pair beside LoRA, ShadowPEFT and full fine-tuning of its source.

The same batches for all, the loss on the same labels, AdamW, fp32, the same number of threads. Every competitor has a
process of its own, and they take turns, step by step.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar, Figure, bars_table, record
from benchmarks.given_batches import write_batches
from benchmarks.results import parser, publish, table
from benchmarks.rounds import Competitor, take_turns
from llm_modules import Source
from llm_modules.data.batches import LengthGroupedBatches, in_batches
from llm_modules.data.dataset import prepare
from llm_modules.data.templates import Example, with_template
from llm_modules.tasks import get_task

SEED = 0
LATER_EPOCHS = 5
LORA = "LoRA r=16, all linear layers"
BARS = {
    "train_causal_epoch_vs_lora": Bar(2.5),
    "train_causal_5_epochs_vs_lora": Bar(2.0),
    "train_prompt_epoch_vs_lora": Bar(3.0),
    "train_prompt_5_epochs_vs_lora": Bar(2.5),
    "train_fast_loss_epoch_vs_lora": Bar(6.0),
    "train_memory_vs_lora": Bar(0.34, at_most=True),
}


@dataclass(frozen=True)
class Size:
    """How much is trained; the defaults are the full size."""

    batch_size: int = 16
    warm_up: int = 2
    repeats: int = 7

    @property
    def num_batches(self) -> int:
        """All batches, those of the warm-up among them."""
        return self.warm_up + self.repeats


SMALL = Size(batch_size=2, warm_up=1, repeats=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, train, compare, and write down."""
    given = parser("training_speed", __doc__).parse_args(arguments)
    size = SMALL if given.quick else Size()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batches = arithmetic_batches(size)
        write_batches(folder, batches)
        entered = run(folder, size)
    figures = figures_of(entered)
    tokens = statistics.median(sum(map(len, batch)) for batch in batches[size.warm_up :])
    labelled = sum(len(e.response_ids) for batch in batches for e in batch) / sum(
        len(e) for batch in batches for e in batch
    )
    data = (
        f"Data: the built-in arithmetic task, {tokens:.0f} tokens a batch ({size.batch_size} examples), {labelled:.0%} "
        f"of them labelled; medians of {size.repeats} steps after {size.warm_up}; peft {version('peft')}."
    )
    publish(
        "performance",
        given,
        command="python -m benchmarks.training_speed",
        measured=f"{bars_table(figures)}\n\n{competitor_table(entered, tokens)}\n\n{data}",
        results={
            "seed": SEED,
            "batch_tokens": tokens,
            "labelled_share": round(labelled, 3),
            "figures": {name: figure.as_json() for name, figure in figures.items()},
            "competitors": {name: details(competitor) for name, competitor in entered.items()},
        },
        started=started,
        block="training-speed",
    )
    record(figures, given)


def arithmetic_batches(size: Size) -> list[list[Example]]:
    """Batches of the arithmetic task as its recipe trains on them."""
    source = Source.load("default", tables_only=True)
    problems = get_task("arithmetic").train(size.batch_size * size.num_batches, seed=SEED)
    examples, _ = prepare(
        [problem.messages() for problem in problems],
        with_template(source.tokenizer, "plain"),
        max_length=256,
        vocab_size=source.config.vocab_size,
    )
    order = LengthGroupedBatches([len(example) for example in examples], batch_size=size.batch_size, seed=SEED)
    return [[examples[index] for index in batch] for batch in in_batches(order, batch_size=size.batch_size)]


def run(folder: Path, size: Size) -> dict[str, Competitor]:
    """All competitors after their turns: first the source reads, then those that the bars are about, then the others.

    LoRA takes part in both rounds of training, so that each competitor has a measurement of it beside its own.
    """
    where = {"folder": str(folder)}
    reading = [
        Competitor(f"{visibility}: source reads", "benchmarks.pairs:extraction", {"visibility": visibility, **where})
        for visibility in ("prompt", "causal")
    ]
    kept = [
        Competitor(
            f"{visibility}: from kept knowledge{', sampled loss' * samples}",
            "benchmarks.pairs:pair",
            {"visibility": visibility, "keeps": True, "samples": samples, **where},
        )
        for visibility in ("prompt", "causal")
        for samples in (False, True)
    ]
    online = [
        Competitor(
            f"{visibility}: source reads in each step",
            "benchmarks.pairs:pair",
            {"visibility": visibility, "keeps": False, **where},
        )
        for visibility in ("prompt", "causal")
    ]
    names = {
        "lora": LORA,
        "lora_attention": "LoRA r=16, attention only",
        "shadow": "ShadowPEFT, its defaults",
        "full": "full fine-tuning",
    }
    rivals = [
        Competitor(name, "benchmarks.rivals:rival", {"method": method, **where}) for method, name in names.items()
    ]
    lora, *others = rivals
    again = Competitor(f"{lora.name}, again", lora.build, lora.arguments)
    turn = {"warm_up": size.warm_up, "repeats": size.repeats}
    with ExitStack() as running:
        take_turns([running.enter_context(one) for one in reading], label="the source reads", **turn)
        finish(reading)
    with ExitStack() as running:
        entered = [running.enter_context(one) for one in [*kept, lora]]
        take_turns(entered, label="pairs and LoRA", **turn)
        finish(entered)
    with ExitStack() as running:
        entered = [running.enter_context(one) for one in [*online, again, *others]]
        take_turns(entered, label="the others", **turn)
        finish(entered)
    return {one.name: one for one in [*reading, *kept, *online, lora, again, *others]}


def finish(competitors: Sequence[Competitor]) -> None:
    """What is asked once, after the timed steps."""
    for competitor in competitors:
        if "method" in competitor.arguments:
            competitor.turn("lean_step", 0)
        if competitor.build != "benchmarks.pairs:extraction":
            competitor.turn("num_trained")


def figures_of(entered: dict[str, Competitor]) -> dict[str, Figure]:
    """What the bars are about, each against LoRA on all linear layers, full vocabulary unless said."""
    lora = entered[LORA]
    figures = {}
    for visibility in ("causal", "prompt"):
        reading = entered[f"{visibility}: source reads"].seconds()
        training = entered[f"{visibility}: from kept knowledge"].seconds()
        name = f"train_{visibility}_epoch_vs_lora"
        figures[name] = Figure.ratio(lora.seconds(), training, BARS[name])
        name = f"train_{visibility}_{LATER_EPOCHS}_epochs_vs_lora"
        ours = [read + LATER_EPOCHS * step for read, step in zip(reading, training, strict=True)]
        figures[name] = Figure.ratio([LATER_EPOCHS * step for step in lora.seconds()], ours, BARS[name])
    name = "train_fast_loss_epoch_vs_lora"
    fast = entered["prompt: from kept knowledge, sampled loss"]
    figures[name] = Figure.ratio(lora.seconds(), fast.seconds(), BARS[name])
    name = "train_memory_vs_lora"
    pairs = [entered[f"{visibility}: from kept knowledge"].peaks_gb() for visibility in ("prompt", "causal")]
    largest = [max(peaks) for peaks in zip(*pairs, strict=True)]
    figures[name] = Figure.ratio(largest, [leanest_gb(lora)] * len(largest), BARS[name])
    return figures


def leanest_gb(competitor: Competitor) -> float:
    """A rival's peak with whichever loss takes less."""
    peaks = [max(competitor.peaks_gb())]
    if "lean_step" in competitor.turns:
        peaks += competitor.peaks_gb("lean_step")
    return min(peaks)


def competitor_table(entered: dict[str, Competitor], tokens: float) -> str:
    """A row for each competitor."""
    lora = entered[LORA]
    again = entered.get(f"{LORA}, again", lora)
    names = list(entered)
    rows = []
    for name, one in entered.items():
        beside = again if names.index(name) > names.index(lora.name) or "each step" in name else lora
        seconds = one.seconds()
        is_reading = "num_trained" not in one.turns
        rows.append(
            [
                name,
                "" if is_reading else f"{one.turns['num_trained'][0].value:,}",
                f"{one.median():.2f} ({min(seconds):.2f}–{max(seconds):.2f})",
                f"{tokens / one.median():,.0f}",
                "" if is_reading else f"{beside.median() / one.median():.2f}",
                f"{leanest_gb(one):.2f}",
                f"{leanest_gb(one) - one.base_gb:.2f}",
            ]
        )
    head = ["", "trained", "s a step (low–high)", "tokens/s", "times LoRA", "peak GB", "above an empty process"]
    return table(head, rows)


def details(competitor: Competitor) -> dict[str, Any]:
    """Everything measured about one competitor."""
    steps = competitor.turns["step"]
    return {
        "seconds": [round(turn.seconds, 4) for turn in steps],
        "peak_gb": [round(turn.peak_gb, 3) for turn in steps],
        "lean_peak_gb": [round(turn.peak_gb, 3) for turn in competitor.turns.get("lean_step", [])],
        "base_gb": round(competitor.base_gb, 3),
        "built_gb": round(competitor.built_gb, 3),
        "losses": [turn.value for turn in steps],
        "num_trained": competitor.turns["num_trained"][0].value if "num_trained" in competitor.turns else None,
    }


if __name__ == "__main__":
    main()
