"""`python -m benchmarks.gpu`: the paper's pair on one GPU beside LoRA on the same source: training, reading, answers.

Random weights in the number types of `recipes/paper-best.yaml` (source in bfloat16, training in bfloat16 autocast):
time and memory do not depend on the values. Each competitor is built alone on the GPU, so that the memory is its own.
Without a GPU only `--quick` runs, at toy shapes.
"""

import copy
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.paper_shapes import BEST, PUBLISHED, WIRINGS, random_source, settings_of
from benchmarks.paper_step import shape
from benchmarks.results import parser, publish, table
from llm_modules import CombinedModel, Knowledge, Source
from llm_modules.compare.adapters import AdaptedSource
from llm_modules.compare.counting import counted, wait_for_device
from llm_modules.machine import best_device
from llm_modules.optimizer import optimizer_of, update_
from llm_modules.settings import Settings
from llm_modules.shapes import choices_of

SEED = 0
PROMPT_SHARE = 0.2  # 80 % of the tokens are labelled


@dataclass(frozen=True)
class Size:
    """How much is measured; the defaults are the full size."""

    rows: int = 8
    tokens: int = 1024
    prompt: int = 512
    written: int = 64
    answers: tuple[int, ...] = (1, 32)
    side: int = 8192
    warm_up: int = 3
    repeats: int = 10


SMALL = Size(rows=2, tokens=32, prompt=16, written=4, answers=(1, 2), side=64, warm_up=1, repeats=2)


@dataclass(frozen=True)
class Kind:
    """A way to wire or to train.

    Args:
        name: As it stands in the table.
        wiring: Of `paper_shapes.WIRINGS`; None for LoRA on the source.
        visibility: Of the pair.
        keeps: Whether the source has read before.
    """

    name: str
    wiring: str | None = BEST
    visibility: str = "causal"
    keeps: bool = False


PAIRS = (
    Kind("causal: from kept knowledge", keeps=True),
    Kind("prompt: from kept knowledge", visibility="prompt", keeps=True),
    Kind("causal: source reads in each step"),
    Kind("prompt: source reads in each step", visibility="prompt"),
    Kind("published wiring, causal: source reads in each step", PUBLISHED),
)
LORA = Kind("LoRA r=16, all linear layers", None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one after the other, and write it down."""
    given = parser("gpu", __doc__).parse_args(arguments)
    if not (given.quick or torch.cuda.is_available()):
        sys.exit("benchmarks.gpu: no CUDA GPU here; --quick runs it at toy shapes on the processor")
    size = SMALL if given.quick else Size()
    started = time.perf_counter()
    source = random_source(shape("source", small=given.quick), torch.bfloat16)
    assert source.model is not None
    source.model.to(best_device())
    source = Source.of(source.model)
    limits = {"bf16_tflops": matmul_tflops(size.side), "copy_gb_per_s": copy_gb_per_s(size.side)}
    reading = read_figures(source, size)
    trained, answers = [], {"source": answer_figures(source.model, size)}
    for kind in tqdm([*PAIRS, LORA], desc="training and answering", unit=" kinds"):
        model, settings = build(kind, source, small=given.quick)
        trained.append(train_figures(kind, model, settings, size, source))
        if kind in (PAIRS[2], PAIRS[3]):
            answers[f"pair, {kind.visibility}"] = answer_figures(model.eval(), size)
        del model
        emptied()
    lora_s = statistics.median(trained[-1]["seconds"])
    rows = [
        [
            one["name"],
            f"{one['trained']:,}",
            milliseconds(one["seconds"]),
            f"{size.rows * size.tokens / statistics.median(one['seconds']):,.0f}",
            f"{lora_s / statistics.median(one['seconds']):.2f}",
            f"{one['flops'] / statistics.median(one['seconds']) / 1e12 / limits['bf16_tflops']:.0%}",
            f"{one['peak_gb']:.1f}",
        ]
        for one in trained
    ]
    head = ["", "trained", "ms a step (low–high)", "tokens/s", "times LoRA", "of the bf16 peak", "peak GB"]
    one_by_one = [
        [name, *(f"{found[batch]['tokens_per_s']:,.0f} ({found[batch]['first_ms']:.0f} ms)" for batch in size.answers)]
        for name, found in answers.items()
    ]
    measured = (
        f"{table(head, rows)}\n\n"
        f"{table(['answers, tokens/s (first token)', *(f'batch {batch}' for batch in size.answers)], one_by_one)}\n\n"
        f"Reading by the source: {reading:,.0f} tokens/s. The device: {limits['bf16_tflops']:,.0f} TFLOP/s in a bf16 "
        f"product of {size.side} x {size.side}, {limits['copy_gb_per_s']:,.0f} GB/s copying, read and written. A step: "
        f"{size.rows} rows of {size.tokens} tokens, {1 - PROMPT_SHARE:.0%} labelled, medians of {size.repeats} after "
        f"{size.warm_up}; answers: {size.written} tokens after a prompt of {size.prompt}."
    )
    publish(
        "performance",
        given,
        command="python -m benchmarks.gpu",
        measured=measured,
        results={
            "seed": SEED,
            "dtype": "bfloat16 autocast",
            "limits": limits,
            "reading_tokens_per_s": reading,
            "training": trained,
            "answers": answers,
        },
        started=started,
        block="gpu",
    )


def milliseconds(seconds: Sequence[float]) -> str:
    """Median, lowest and highest."""
    middle, low, high = (1e3 * chosen(seconds) for chosen in (statistics.median, min, max))
    return f"{middle:.0f} ({low:.0f}–{high:.0f})"


def build(kind: Kind, source: Source, *, small: bool) -> tuple[Any, Settings]:
    """A competitor on the device, and how it trains."""
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        made = settings_of(
            WIRINGS[kind.wiring or BEST], Path(folder), shape("generator", small=small), "bfloat16", tokens=1
        )
    if kind.wiring is None:
        # a copy: adapters are put into it, and what is drawn for them is on the processor
        return AdaptedSource("lora", copy.deepcopy(source.model)).to(best_device()).train(), made
    start = "identity" if (kind.wiring, kind.visibility) == (BEST, "causal") else "published"
    chosen = made.model.model_copy(update={"visibility": kind.visibility, "start": start})
    settings = made.model_copy(update={"model": chosen})
    model = CombinedModel.from_modules(source, chosen.generator, **choices_of(chosen))
    return model.to(best_device()).train(), settings


def train_figures(kind: Kind, model: Any, settings: Settings, size: Size, source: Source) -> dict[str, Any]:
    """Seconds of each step, its arithmetic and the memory it takes, on the device."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(source.config.vocab_size, (size.rows, size.tokens), generator=generator)
    num_prompt = round(PROMPT_SHARE * size.tokens)
    labels = ids.clone()
    labels[:, :num_prompt] = -100
    prompts = torch.arange(size.tokens).expand_as(ids) < num_prompt
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if kind.wiring is None:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    else:
        optimizer = optimizer_of(model, settings.training, fused=True)
    read = num_prompt if kind.visibility == "prompt" else size.tokens
    kept = torch.randn(size.rows, read, 1, source.config.hidden_size).bfloat16() if kind.keeps else None
    device = best_device()

    def step() -> float:
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "labels": labels.to(device)}
        inputs["prompt_mask"] = prompts.to(device)
        if kept is not None:  # carried over in each step, as a store's is
            inputs["knowledge"] = Knowledge(
                kept.to(device), torch.ones(kept.shape[:2], dtype=torch.bool, device=device)
            )
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**inputs).loss
        return update_(loss, parameters, optimizer)

    flops = counted(step).flops
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [timed(step) for _ in range(size.warm_up + size.repeats)][size.warm_up :]
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
    if kind.keeps:  # of the source the two tables would be there
        peak -= weights_gb(source) - table_gb(source)
    if kind.wiring is None:  # the other copy would not be there
        peak -= weights_gb(source)
    return {
        "name": kind.name,
        "trained": model.num_parameters(only_trainable=True),
        "flops": flops,
        "seconds": seconds,
        "peak_gb": peak,
    }


def answer_figures(model: Any, size: Size) -> dict[int, dict[str, float]]:
    """Tokens a second through `generate`, and milliseconds to the first one, by batch."""
    found = {}
    for batch in size.answers:
        ids = torch.full((batch, size.prompt), 3, device=best_device())

        def write(num: int, ids: Tensor = ids) -> None:
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=num,
                max_new_tokens=num,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )

        timed(lambda: write(2))
        first, whole = (
            statistics.median(timed(lambda: write(num)) for _ in range(3))  # noqa: B023
            for num in (1, size.written)
        )
        found[batch] = {"first_ms": 1e3 * first, "tokens_per_s": batch * (size.written - 1) / (whole - first)}
    return found


def read_figures(source: Source, size: Size) -> float:
    """Tokens a second that the source reads, a batch of the training's."""
    ids = torch.randint(source.config.vocab_size, (size.rows, size.tokens), device=best_device())

    def read() -> None:
        source.read(ids, attention_mask=torch.ones_like(ids), taps=[-1])

    return ids.numel() / statistics.median([timed(read) for _ in range(size.warm_up + size.repeats)][size.warm_up :])


def matmul_tflops(side: int) -> float:
    """The most that bf16 matrix products reach."""
    a, b = (torch.randn(side, side, device=best_device(), dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / statistics.median([timed(lambda: a @ b) for _ in range(10)][3:]) / 1e12


def copy_gb_per_s(side: int) -> float:
    """Bytes read and written a second by a large copy."""
    a = torch.randn(4 * side, side, device=best_device())
    b = torch.empty_like(a)
    return 2 * a.nbytes / statistics.median([timed(lambda: b.copy_(a)) for _ in range(10)][3:]) / 1e9


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call, the device's work included."""
    wait_for_device()
    started = time.perf_counter()
    call()
    wait_for_device()
    return time.perf_counter() - started


def emptied() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def weights_gb(source: Source) -> float:
    """Of the whole source."""
    assert source.model is not None
    return sum(parameter.nbytes for parameter in source.model.parameters()) / 1e9


def table_gb(source: Source) -> float:
    """Of its embedding table, which is its output matrix as well."""
    return source.embedding.nbytes / 1e9


if __name__ == "__main__":
    main()
