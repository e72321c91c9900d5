"""`python -m benchmarks.loss_speed`: time and memory of the loss beside the plain one, at two vocabularies.

The plain loss computes all logits, then `torch.nn.functional.cross_entropy`, as most code does.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bars import Bar, Figure, bars_table, record
from benchmarks.results import parser, publish, table
from benchmarks.watch import Watch
from llm_modules.loss import cross_entropy
from llm_modules.readout import Readout

SEED, REPEATS, WIDTH, ROWS = 0, 5, 256, 4096
VOCABULARIES = (49_152, 151_936)
BARS = {"loss_memory_mb": Bar(400, at_most=True), "loss_time_vs_plain": Bar(1.5, at_most=True)}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def chunked(states: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    """Ours."""
    return cross_entropy(Readout(states, matrix), targets)


def plain(states: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(states @ matrix.T, targets)


def turn(loss: Loss, states: Tensor, matrix: Tensor, targets: Tensor) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and megabytes held beyond weights, states and their gradients."""
    states.grad = matrix.grad = None
    gc.collect()
    watch = Watch(quiet=True)
    with watch.phase("before"):
        pass
    with watch.phase("loss"):
        loss(states, matrix, targets).backward()
    beyond = 1e3 * (watch.peak_gb["loss"] - watch.peak_gb["before"])
    return watch.seconds["loss"], beyond - (states.nbytes + matrix.nbytes) / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    given, started = parser("loss_speed", __doc__.partition("\n")[0]).parse_args(arguments), time.perf_counter()
    rows_of_labels = 256 if given.quick else ROWS
    draw = torch.Generator().manual_seed(SEED)
    rows, found, figures = [], {}, {}
    for vocab_size in VOCABULARIES:
        states = torch.randn(rows_of_labels, WIDTH, generator=draw, requires_grad=True)
        matrix = torch.randn(vocab_size, WIDTH, generator=draw).mul_(0.05).requires_grad_()
        targets = torch.randint(vocab_size, (rows_of_labels,), generator=draw)
        turns: dict[str, list[tuple[float, float]]] = {"chunked": [], "plain": []}
        for number in range(REPEATS + 1):
            for name, loss in (("chunked", chunked), ("plain", plain)):
                one = turn(loss, states, matrix, targets)
                if number:  # the first only warms up
                    turns[name].append(one)
                    print(f"  V = {vocab_size:,}, {name}: {one[0]:.2f} s, {one[1]:.0f} MB", flush=True)
        seconds = {name: [one[0] for one in several] for name, several in turns.items()}
        sizes = {name: [one[1] for one in several] for name, several in turns.items()}
        for name in turns:
            flops = 6 * rows_of_labels * WIDTH * vocab_size
            rows.append(
                [f"{vocab_size:,}", name, f"{statistics.median(seconds[name]):.2f}",
                 f"{min(seconds[name]):.2f}–{max(seconds[name]):.2f}", f"{statistics.median(sizes[name]):,.0f}",
                 f"{flops / statistics.median(seconds[name]) / 1e9:.0f}"]
            )  # fmt: skip
        found[vocab_size] = {"seconds": seconds, "megabytes": sizes}
        figures = {  # of the last, largest vocabulary
            "loss_memory_mb": Figure(
                statistics.median(sizes["chunked"]), BARS["loss_memory_mb"],
                (min(sizes["chunked"]), max(sizes["chunked"])),
            ),
            "loss_time_vs_plain": Figure.ratio(seconds["chunked"], seconds["plain"], BARS["loss_time_vs_plain"]),
        }  # fmt: skip
    record(figures, given)
    head = ("V", "loss", "seconds", "lowest–highest", "MB beyond weights and gradients", "GFLOP/s")
    publish(
        "performance", given, command="python -m benchmarks.loss_speed", block="loss", started=started,
        measured=f"{rows_of_labels:,} label rows of width {WIDTH}, medians of {REPEATS}.\n\n{table(head, rows)}\n\n"
        f"{bars_table(figures)}",
        results={"seed": SEED, **found},
    )  # fmt: skip


if __name__ == "__main__":
    main()
