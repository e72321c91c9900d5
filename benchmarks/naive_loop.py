"""`python -m benchmarks.naive_loop`: answers by the published code's loop that `decoding_speed` has no time for.

For each new token the published code runs source, bridge and generator over the whole sequence. Here: answers of up to
1,024 tokens, eight at once, and the paper's shapes, beside the `prompt` pair of the same size in the same run; timed at
eight places and integrated. What takes over a minute is timed once at each place, the rest five times.
"""

import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.decoding_speed import (
    ANSWERS,
    PLACES,
    PROMPT,
    REPEATS,
    SEED,
    Stage,
    Writer,
    default_stage,
    integrate,
    paper_stage,
    published_pair,
    time_of_naive_loop,
    time_per_token,
)
from benchmarks.results import parser, publish, table
from llm_modules import CombinedModel
from llm_modules.modeling import LEAK_WARNING


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        size: `default` or `paper`.
        batch: Rows at once.
        repeats: Of each place, for the loop.
    """

    size: str
    batch: int
    repeats: int


CASES = (Case("default", 1, REPEATS), Case("default", 8, 1), Case("paper", 1, 1))
NOT_TIMED = "Not timed: the paper's shapes eight at once, where one place takes some three minutes."


def measure(stage: Stage, naive: CombinedModel, case: Case, places: Sequence[int]) -> list[str]:
    """A row: tokens a second of the loop and of the `prompt` pair, and how many times the pair is as fast."""
    pair = stage.pairs["prompt"]
    pair.fold_head_(case.batch)
    print(f"{case}", flush=True)
    ours = time_per_token({"prompt": Writer(pair, PROMPT, case.batch)}, places)["prompt"]
    loop = time_of_naive_loop(naive, places, PROMPT, batch=case.batch, repeats=case.repeats)
    cells = []
    for tokens in ANSWERS:
        whole = [integrate([statistics.median(one) for one in seconds], tokens, places) for seconds in (loop, ours)]
        cells.append(
            f"{case.batch * tokens / whole[0]:.3g}, {case.batch * tokens / whole[1]:.3g}, {whole[0] / whole[1]:.0f}x"
        )
    return [case.size, str(case.batch), str(case.repeats), *cells]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    given, started = parser("naive_loop", __doc__.partition("\n")[0]).parse_args(arguments), time.perf_counter()
    warnings.filterwarnings("ignore", message=LEAK_WARNING.partition(" lets")[0])  # it is what this is about
    places, rows = PLACES[:2] if given.quick else PLACES, []
    for size in dict.fromkeys(case.size for case in CASES):
        stage = default_stage() if size == "default" else paper_stage(small=given.quick)
        naive = stage.naive.get("prompt") or published_pair(stage)
        rows += [measure(stage, naive, case, places) for case in CASES if case.size == size]
        del stage, naive
    head = ["size", "batch", "repeats of the loop", *(f"tokens/s of loop, of pair; ratio: {n} tokens" for n in ANSWERS)]
    publish(
        "performance", given, command="python -m benchmarks.naive_loop", block="naive-loop", started=started,
        measured=f"{table(head, rows)}\n\n{NOT_TIMED}", results={"seed": SEED, "rows": rows},
    )  # fmt: skip


if __name__ == "__main__":
    main()
