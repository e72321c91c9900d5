"""`python -m benchmarks.long_prompt`: memory and time of prompts far beyond the generator's position table.

A small random source (8 layers, width 256, grouped heads), a GPT-Neo generator with a table of 2,048 positions,
`prompt` visibility. Each length runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import GPTNeoConfig, LlamaConfig

from llm_modules import CombinedModel
from llm_modules.files import write_text

LENGTHS = (4_000, 8_000, 16_000, 32_000)
NEW_TOKENS, TABLE, SEED = 16, 2048, 0
RESULTS = Path(__file__).parent / "long_prompt.json"


def build() -> CombinedModel:
    """The pair, with random weights: what memory and time it takes does not depend on them."""
    torch.manual_seed(SEED)
    source = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=131_072,
    )
    generator = GPTNeoConfig(
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        max_position_embeddings=TABLE,
        vocab_size=8,
    )
    return CombinedModel.from_modules(
        source, generator, visibility="prompt", num_bridge_layers=2, num_heads=4, d_adapter=64
    ).eval()


def measure(length: int) -> dict[str, float]:
    """Peak memory and seconds of one request, in this process."""
    model = build()
    ids = torch.randint(3, 4096, (1, length))
    model.generate(ids[:, :64], max_new_tokens=2, do_sample=False, eos_token_id=None)  # warm
    before = peak_gb()
    start = time.perf_counter()
    with torch.no_grad():
        known = model.read(ids)
    reading = time.perf_counter() - start
    start = time.perf_counter()
    written = model.generate(ids, knowledge=known, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    assert written.shape == (1, length + NEW_TOKENS)
    return {
        "tokens": length,
        "peak_gb": peak_gb(),
        "beyond_model_gb": peak_gb() - before,
        "reading_s": reading,
        "answering_s": time.perf_counter() - start,
    }


def peak_gb() -> float:
    """Most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print a row a length, and the growth from one to the next."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--only", type=int, help="measure this length here and print JSON")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only)))
        return
    print(f"generator's table: {TABLE} positions; {torch.get_num_threads()} threads; fp32; seed {SEED}\n")
    print(f"{'prompt':>8} {'peak GB':>8} {'beyond the model':>17} {'growth':>7} {'KB/token':>9} {'reading s':>10} "
          f"{'answering s':>12}")  # fmt: skip
    rows: list[dict[str, float]] = []
    for length in arguments.lengths:
        command = [sys.executable, "-m", "benchmarks.long_prompt", "--only", str(length)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        growth = f"{row['beyond_model_gb'] / rows[-1]['beyond_model_gb']:.2f}x" if rows else ""
        rows.append(row)
        print(
            f"{length:8,} {row['peak_gb']:8.2f} {row['beyond_model_gb']:17.2f} {growth:>7} "
            f"{row['beyond_model_gb'] * 2**20 / length:9.1f} {row['reading_s']:10.1f} {row['answering_s']:12.1f}",
            flush=True,
        )
    write_text(arguments.output, json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
