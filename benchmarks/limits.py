"""`python -m benchmarks.limits`: what this machine can do at most, measured first: arithmetic and memory bandwidth."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.results import parser, publish, table

REPEATS = 7
SIDE = 2048


def bandwidth_gb_per_s(megabytes: int = 512) -> float:
    """Memory bandwidth as decoding uses it: a matrix too large for the caches times a vector; median of several."""
    matrix = torch.ones(megabytes * 2**20 // 4 // 1024, 1024)
    vector = torch.ones(1024)
    return megabytes * 2**20 / 1e9 / _median_seconds(lambda: torch.mv(matrix, vector))


def matmul_tflops(rows: int, wide: int, out: int, dtype: torch.dtype = torch.float32) -> float:
    """What this machine sustains on `rows` states of a layer from `wide` to `out`; the median of several."""
    states = torch.randn(rows, wide).to(dtype)
    matrix = torch.full((out, wide), 0.02, dtype=dtype)
    return 2 * rows * wide * out / _median_seconds(lambda: torch.nn.functional.linear(states, matrix)) / 1e12


def peak_tflops() -> float:
    """The most that matrix products reach here: large square ones."""
    return matmul_tflops(SIDE, SIDE, SIDE)


def _median_seconds(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first run only warms up


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and publish."""
    given, started = parser("limits", __doc__.partition("\n")[0]).parse_args(arguments), time.perf_counter()
    found = {
        "matrix product, 2048 x 2048 x 2048, fp32, GFLOP/s": 1000 * peak_tflops(),
        "the same, bf16, GFLOP/s": 1000 * matmul_tflops(SIDE, SIDE, SIDE, torch.bfloat16),
        "512 states of 768 to 3072, fp32, GFLOP/s": 1000 * matmul_tflops(512, 768, 3072),
        "512 states of 1536 to 8960, fp32, GFLOP/s": 1000 * matmul_tflops(512, 1536, 8960),
        "memory, matrix times vector, GB/s": bandwidth_gb_per_s(),
    }
    rows = [[name, f"{value:.1f}"] for name, value in found.items()]
    publish(
        "performance", given, command="python -m benchmarks.limits", block="limits", started=started,
        measured=table(("what", "measured"), rows), results={"seed": 0, **found},
    )  # fmt: skip


if __name__ == "__main__":
    main()
