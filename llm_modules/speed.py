"""How fast models write, side by side in one run."""

import statistics
import time
from typing import Any

import torch

from llm_modules.data.templates import encode_prompt
from llm_modules.modeling import CombinedModel
from llm_modules.source import Source


def measure_speed(source: Source, pairs: dict[str, CombinedModel], *, new_tokens: int = 128, repeats: int = 5) -> dict:
    """Tokens per second of one answer, source and pairs in turn; medians, lowest and highest.

    All write exactly `new_tokens` tokens, greedily, by transformers' `generate`, with the same threads and dtype.
    """
    prompt = encode_prompt([{"role": "user", "content": "Find the sum of 5 and 5."}], source.tokenizer)
    ids = torch.tensor([prompt])
    kwargs = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    models: list[tuple[str, Any]] = [("source", source.model), *pairs.items()]
    runs: dict[str, list[float]] = {name: [] for name in ("source", *pairs)}
    for _ in range(repeats):
        for name, model in models:
            start = time.perf_counter()
            model.generate(ids, attention_mask=torch.ones_like(ids), **kwargs)
            runs[name].append(new_tokens / (time.perf_counter() - start))
            print(f"  {name}: {runs[name][-1]:.1f} tokens/s", flush=True)
    return {
        **{name: statistics.median(values) for name, values in runs.items()},
        "new_tokens": new_tokens,
        "repeats": repeats,
        "spread": {name: [min(values), max(values)] for name, values in runs.items()},
    }
