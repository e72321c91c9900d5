"""`python -m benchmarks.paper_step`: a training step at the paper's shapes beside LoRA on the same source.

One row of 512 tokens, random weights, knowledge kept: time and memory do not depend on the values. All 28 layers of the
source are built for LoRA (6.2 GB in fp32); the pair needs its two tables, which here are one.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from benchmarks import pairs
from benchmarks.bars import Bar, Figure, bars_table, record
from benchmarks.given_batches import Actions, knowledge_file, read_batches, write_batches, write_knowledge
from benchmarks.limits import peak_tflops
from benchmarks.paper_shapes import BEST as RECIPE
from benchmarks.paper_shapes import MODELS, SMALL_SHAPES, WIRINGS, random_source, settings_of
from benchmarks.results import parser, publish
from benchmarks.rounds import Competitor
from benchmarks.training_speed import LORA, competitor_table, details, finish
from llm_modules import Source
from llm_modules.data.templates import Example
from llm_modules.shapes import known_shape

SEED = 0
PROMPT_SHARE = 0.2  # 80 % of the tokens are labelled
WARM_UP, REPEATS = 1, 5
VISIBILITIES = ("causal", "prompt")
BARS = {"train_paper_step_vs_lora": Bar(3.0), "train_share_of_peak": Bar(0.5)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Let the pair and LoRA take turns, and write down how they compare."""
    given = parser("paper_step", __doc__).parse_args(arguments)
    started = time.perf_counter()
    tokens = 64 if given.quick else 512
    with tempfile.TemporaryDirectory() as folder:
        write_random_(Path(folder), shape("source", small=given.quick), tokens)
        where = {"folder": folder, "small": given.quick}
        ours = [
            Competitor(
                f"{visibility}: from kept knowledge",
                "benchmarks.paper_step:pair",
                where | {"visibility": visibility},
            )
            for visibility in VISIBILITIES
        ]
        lora = Competitor(LORA, "benchmarks.paper_step:rival", where | {"method": "lora"})
        with ExitStack() as running:
            competitors = [running.enter_context(one) for one in [*ours, lora]]
            rounds = WARM_UP + REPEATS
            with tqdm(total=rounds * len(competitors), desc="steps at the paper's shapes", unit=" steps") as progress:
                for index in range(rounds):
                    for one in competitors:
                        one.turn("step", index, keep=index >= WARM_UP)
                        if one is not lora:
                            one.turn("peak_tflops", keep=index >= WARM_UP)
                        progress.update()
            for one in ours:
                one.turn("flops", 0)
            finish(competitors)
    measured = {one.name: one for one in [*ours, lora]}
    shares = {one.name: share_of_peak(one) for one in ours}
    causal = ours[0]  # as recipes/paper-best.yaml has it
    step = "train_paper_step_vs_lora"
    figures = {
        step: Figure.ratio(lora.seconds(), causal.seconds(), BARS[step]),
        "train_share_of_peak": shares[causal.name],
    }
    of_peak = "; ".join(f"{name} {share.value:.0%}" for name, share in shares.items())
    publish(
        "performance",
        given,
        command="python -m benchmarks.paper_step",
        measured=f"{bars_table(figures)}\n\n{competitor_table(measured, tokens)}\n\nShare of the peak: {of_peak}.",
        results={
            "seed": SEED,
            "tokens": tokens,
            "figures": {name: figure.as_json() for name, figure in figures.items()},
            "share_of_peak": {name: share.as_json() for name, share in shares.items()},
            "competitors": {
                name: details(one) | {"flops": one.turns["flops"][0].value if "flops" in one.turns else None}
                for name, one in measured.items()
            },
        },
        started=started,
        block="paper-step",
    )
    record(figures, given)


def share_of_peak(one: Competitor) -> Figure:
    """Arithmetic of a step against the most that matrix products reach here, measured in the same round."""
    flops = one.turns["flops"][0].value
    allowed = [flops / turn.value / 1e12 for turn in one.turns["peak_tflops"]]
    return Figure.ratio(allowed, one.seconds(), BARS["train_share_of_peak"])


def shape(part: str, *, small: bool) -> PreTrainedConfig:
    """The paper's source or generator, or toy shapes of the same kind."""
    return known_shape(MODELS[part], **(SMALL_SHAPES[part] if small else {}))


def write_random_(folder: Path, source: PreTrainedConfig, tokens: int) -> None:
    """Random rows, and as their knowledge random states."""
    generator = torch.Generator().manual_seed(SEED)
    num_prompt = round(PROMPT_SHARE * tokens)
    batches = []
    for index in range(WARM_UP + REPEATS):
        ids = torch.randint(source.vocab_size, (tokens,), generator=generator).tolist()
        batches.append([Example(ids[:num_prompt], ids[num_prompt:])])
        states = torch.randn(tokens, 1, source.hidden_size, generator=generator)
        for visibility, length in (("causal", tokens), ("prompt", num_prompt)):
            read = Example(ids[:num_prompt], ids[num_prompt:], states[:length].clone())
            write_knowledge(knowledge_file(folder, index, visibility), [read])
    write_batches(folder, batches)


def pair(visibility: str, folder: str, *, small: bool) -> Actions:
    """The paper's pair with the source's head, from kept knowledge.

    Args:
        visibility: `causal`, as the recipe has it, or `prompt`.
        folder: Where batches and knowledge are.
        small: Toy shapes.
    """
    config = shape("source", small=small)
    settings = settings_of(WIRINGS[RECIPE], Path(folder), shape("generator", small=small), "float32", tokens=1)
    start = "identity" if visibility == "causal" else "published"
    chosen = settings.model.model_copy(update={"visibility": visibility, "start": start})
    settings = settings.model_copy(update={"model": chosen})
    model = pairs.build(settings, random_tables(config))
    actions: dict[str, Any] = pairs.actions_of(model, settings, Path(folder), keeps=True, samples=False)

    def flops(index: int) -> int:
        with FlopCounterMode(display=False) as counter:
            actions["step"](index)
        return counter.get_total_flops()

    return actions | {"flops": flops, "peak_tflops": peak_tflops}


def random_tables(config: PreTrainedConfig) -> Source:
    """A source without a body: one random table at both ends, as the paper's source has it."""
    table = torch.randn(config.vocab_size, config.hidden_size, generator=torch.Generator().manual_seed(SEED))
    source = Source(config, embedding=table.mul_(config.initializer_range), output_matrix=table)
    source.fingerprint = "random"  # nothing is stored that it could be taken from
    return source


def rival(method: str, folder: str, *, small: bool) -> Actions:
    """A rival on the whole source."""
    from benchmarks import rivals  # peft: not in the pair's process

    source = random_source(shape("source", small=small), torch.float32)
    return rivals.actions_of(method, source.model, read_batches(Path(folder)))


if __name__ == "__main__":
    main()
