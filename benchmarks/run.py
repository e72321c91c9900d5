"""`make bench`: decoding speed of source and pairs in one run, beside what memory bandwidth allows.

Weights of the pairs are random: speed does not depend on them.
"""

import statistics
import time
from pathlib import Path

import torch

from llm_modules import Source
from llm_modules.settings import load_settings
from llm_modules.speed import measure_speed
from llm_modules.training import build_model

RECIPES = Path(__file__).parents[1] / "recipes"
SEED = 0
REPEATS = 5


def bandwidth_gb_per_s(megabytes: int = 512) -> float:
    """Memory bandwidth as decoding uses it: a matrix too large for the caches times a vector; median of several."""
    matrix = torch.ones(megabytes * 2**20 // 4 // 1024, 1024)
    vector = torch.ones(1024)
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        torch.mv(matrix, vector)
        seconds.append(time.perf_counter() - start)
    return megabytes * 2**20 / 1e9 / statistics.median(seconds[1:])  # the first run only warms up


def main() -> None:
    """Print a table of tokens per second, ratios and shares of the bandwidth limit."""
    source = Source.load("default")
    pairs = {}
    for visibility, recipe in (("prompt", "arithmetic"), ("causal", "facts")):
        settings = load_settings(RECIPES / f"{recipe}.yaml").model
        pairs[visibility] = build_model(settings.model_copy(update={"source": source}), seed=SEED).eval()
    limit = bandwidth_gb_per_s()
    speed = measure_speed(source, pairs, repeats=REPEATS)
    head = source.output_matrix.nbytes
    body = sum(parameter.nbytes for parameter in source.model.base_model.parameters()) - source.embedding.nbytes
    read = {
        "source": body + head,
        "prompt": head + sum(parameter.nbytes for parameter in pairs["prompt"].generator.parameters()),
        "causal": body + head + sum(parameter.nbytes for parameter in pairs["causal"].parameters()),
    }
    print(f"\nmemory bandwidth {limit:.1f} GB/s; {torch.get_num_threads()} threads; fp32; batch 1; seed {SEED}")
    print(f"{speed['new_tokens']} new tokens, medians of {speed['repeats']}\n")
    print(f"{'':8} {'tokens/s':>9} {'(low–high)':>14} {'vs source':>10} {'MB/token':>9} {'share of limit':>15}")
    for name, size in read.items():
        low, high = speed["spread"][name]
        allowed = limit * 1e9 / size
        print(
            f"{name:8} {speed[name]:9.1f} {f'({low:.1f}–{high:.1f})':>14} {speed[name] / speed['source']:10.2f} "
            f"{size / 1e6:9.0f} {speed[name] / allowed:15.0%}"
        )


if __name__ == "__main__":
    main()
