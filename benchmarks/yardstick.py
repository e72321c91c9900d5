"""llama.cpp on the default source's own file: what an engine in C++ reaches with the 4-bit weights as they are stored.

An outside yardstick: other weights (4 bits where ours have 32), other kernels, no Python between tokens.
"""

import time
from collections.abc import Sequence

import torch
from tqdm import trange

from llm_modules.default_source import built_in_gguf

MISSING = (
    "llama.cpp was not measured: llama-cpp-python is not installed (`pip install -e '.[yardstick]'` compiles it, a "
    "quarter of an hour on two cores)"
)


def is_there() -> bool:
    """Whether llama.cpp can be asked."""
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        return False
    return True


def measure(
    prompt: Sequence[int], *, answers: Sequence[int], repeats: int
) -> tuple[list[float], dict[int, list[float]]]:
    """Write greedily after a prompt, never stopping before the longest answer.

    Args:
        prompt: Token ids.
        answers: Lengths of answers.
        repeats: How often.

    Returns:
        Seconds to the first token, and by length those of an answer after it, each a list over the repeats.
    """
    import llama_cpp

    threads, longest = torch.get_num_threads(), max(answers)
    model = llama_cpp.Llama(
        str(built_in_gguf()), n_ctx=len(prompt) + longest + 8, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    first: list[float] = []
    seconds: dict[int, list[float]] = {length: [] for length in answers}
    for _ in trange(repeats, desc="llama.cpp", unit=" answers"):
        model.reset()
        times = [time.perf_counter()]
        for _, _ in zip(range(longest + 1), model.generate(list(prompt), temp=0.0, reset=True), strict=False):
            times.append(time.perf_counter())
        first.append(times[1] - times[0])
        for length in answers:
            seconds[length].append(times[1 + length] - times[1])
    return first, seconds
