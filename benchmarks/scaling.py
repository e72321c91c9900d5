"""`python -m benchmarks.scaling`: what training costs each of many GPUs, computed by the planner's formulas.

Nothing here is measured. For the paper's pair, and for a source of 70B with a generator of 1B. Every assumption is a
field of `Machines`; docs/scaling.md says what follows.
"""

import argparse
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from benchmarks.results import RECIPES, ROOT, table, with_block
from llm_modules.blocks import blocks_of
from llm_modules.corpus import Given
from llm_modules.costs import FP32, Body
from llm_modules.files import write_text
from llm_modules.planning import Plan, plan
from llm_modules.settings import Settings, load_settings
from llm_modules.shapes import Skeleton, skeleton

WORLDS = (1, 8, 64, 512)
BF16 = 2
# Llama 3's published shapes
SOURCE_70B = {
    "vocab_size": 128_256, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 8192, "dtype": "bfloat16",
}  # fmt: skip
GENERATOR_1B = {
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip


@dataclass(frozen=True)
class Machines:
    """What is assumed of the machines: hosts of eight H100 (SXM), 400 Gbit/s of network for each GPU.

    Args:
        gpus_per_host: GPUs in a host.
        peak_tflops: Dense bf16, by the data sheet, in 10^12 a second.
        utilisation: Share of it that matrix products reach in training (MFU).
        memory_gb_per_s: To and from a GPU's memory, in 10^9 bytes a second.
        in_host_gb_per_s: From a GPU to the others of its host, one way.
        network_gb_per_s: From a GPU to other hosts, one way.
        link_share: Share of both that collectives reach.
        latency_us: Of a collective, for each doubling of the number of GPUs.
        bucket_mb: Gradients sent together by DDP.
        exposed: Share of the communication that no work hides, the last bucket among it.
        waiting: Share of a step lost for each doubling of the number of GPUs: the slowest share of a batch decides.
        store_gb_per_s: From the object store to a host.
        store_in_all_gb_per_s: From the object store to all hosts together.
    """

    gpus_per_host: int = 8
    peak_tflops: float = 989.0
    utilisation: float = 0.4
    memory_gb_per_s: float = 3350.0
    in_host_gb_per_s: float = 450.0
    network_gb_per_s: float = 50.0
    link_share: float = 0.8
    latency_us: float = 15.0
    bucket_mb: float = 25.0
    exposed: float = 0.1
    waiting: float = 0.01
    store_gb_per_s: float = 5.0
    store_in_all_gb_per_s: float = 200.0

    @property
    def flops(self) -> float:
        """FLOPs a second that a GPU sustains."""
        return self.peak_tflops * 1e12 * self.utilisation

    def passing_s(self, num_bytes: float, world: int) -> float:
        """Seconds of an all-gather or a reduce-scatter of so many bytes: in hosts, and between them on all links."""
        local = min(world, self.gpus_per_host)
        hosts = math.ceil(world / self.gpus_per_host)
        inside = (local - 1) / local * num_bytes / (self.in_host_gb_per_s * 1e9)
        between = (hosts - 1) / hosts * num_bytes / (self.network_gb_per_s * 1e9 * self.gpus_per_host)
        return (inside + between) / self.link_share


@dataclass(frozen=True)
class Case:
    """A way to train.

    Args:
        name: Of it.
        settings: Of the run, with what one GPU takes of a batch as `batch_size`.
        given: The data.
        reads: Whether each process holds the source and reads in every step; else from a store.
        sharded: FSDP2, else DDP.
    """

    name: str
    settings: Settings
    given: Given
    reads: bool
    sharded: bool


def cases(folder: Path) -> list[Case]:
    """Those of the page; `folder` is for a configuration."""
    LlamaConfig(**SOURCE_70B).save_pretrained(folder)
    changes = ["training.batch_size=8", "training.gradient_accumulation_steps=1", "training.precision=bfloat16"]
    paper = load_settings(RECIPES / "paper-best.yaml", changes)
    large = Settings.model_validate({
        "model": {"source": str(folder), "source_dtype": "bfloat16", "generator": GENERATOR_1B, "visibility": "prompt"},
        "data": {"train_file": "prompts.jsonl", "max_length": 4096},
        "training": {"batch_size": 2, "num_epochs": 1, "precision": "bfloat16"},
    })  # fmt: skip
    stratos = Given(examples=16_700, tokens_per_example=1400, prompt_tokens=400)
    prompts = Given(examples=1_000_000, tokens_per_example=2000, prompt_tokens=1500)
    pair, big = "Qwen2-1.5B + GPT-Neo-125M", "70B + 1B"
    return [
        Case(f"{pair}, source in every process, DDP", paper, stratos, reads=True, sharded=False),
        Case(f"{pair}, from a store, DDP", paper, stratos, reads=False, sharded=False),
        Case(f"{pair}, from a store, FSDP2", paper, stratos, reads=False, sharded=True),
        Case(f"{big}, from a store, DDP", large, prompts, reads=False, sharded=False),
        Case(f"{big}, from a store, FSDP2", large, prompts, reads=False, sharded=True),
    ]


def scaled(case: Case, machines: Machines) -> list[dict[str, Any]]:
    """What a step costs one of so many GPUs, each taking as many examples as one alone would."""
    made, bones = plan(case.settings, given=case.given), skeleton(case.settings.model, report=lambda _: None)
    return [_scaled(case, made, bones, world, machines) for world in WORLDS]


def _scaled(case: Case, made: Plan, bones: Skeleton, world: int, machines: Machines) -> dict[str, Any]:
    batch = case.settings.training.batch_size
    work_s = batch * (made.per_example.learning + case.reads * made.per_example.reading) / machines.flops
    work_s += made.moved_per_step / (machines.memory_gb_per_s * 1e9)
    passed, num_collectives = _passed(case, made, bones, machines)
    moving_s = machines.passing_s(passed, world) + num_collectives * machines.latency_us * 1e-6 * math.log2(world)
    shown_s = max(machines.exposed * moving_s, moving_s - work_s * 2 / 3)  # the backward pass hides the rest
    read = batch * _read_bytes(case, bones)
    hosts = math.ceil(world / machines.gpus_per_host)
    local = min(world, machines.gpus_per_host)
    store = min(machines.store_gb_per_s, machines.store_in_all_gb_per_s / hosts) * 1e9 / local
    step_s = (work_s + shown_s) * (1 + machines.waiting * math.log2(world)) + read / store  # a batch is read when due
    examples = made.corpus.num_training * case.settings.training.num_epochs
    updates = examples / (batch * world)
    return {
        "gpus": world,
        "examples_per_update": batch * world,
        "sent_gb": (world - 1) / world * passed / 1e9,
        "memory_gb": _memory(case, made, bones, world) / 1e9,
        "step_ms": 1000 * step_s,
        "updates": updates,
        "hours": updates * step_s / 3600,
        "reading_ms": 1000 * read / store,
        "store_gb_per_s_per_host": read / step_s * local / 1e9,
    }


def _passed(case: Case, made: Plan, bones: Skeleton, machines: Machines) -> tuple[float, float]:
    """Bytes of all-gathers and reduce-scatters of an update (an all-reduce is one of each), and how many there are."""
    whole = FP32 * made.num_trainable
    if not case.sharded:
        return 2 * whole, 2 * math.ceil(whole / (machines.bucket_mb * 1e6))
    blocks = blocks_of(bones.model.generator)
    in_blocks = FP32 * sum(parameter.numel() for block in blocks for parameter in block.parameters())
    # gathered for the forward pass, blocks again for the backward pass, and gradients scattered
    return 2 * whole + in_blocks, 3 * len(blocks) + 2


def _memory(case: Case, made: Plan, bones: Skeleton, world: int) -> float:
    """Bytes on a GPU; DDP holds gradients once more, in its buckets."""
    parts = dict(made.memory["gpu"])
    if not case.reads:
        source = bones.source
        tables = {id(t): t for t in (source.get_input_embeddings().weight, source.get_output_embeddings().weight)}
        parts["source weights"] = BF16 * sum(table.numel() for table in tables.values())
        parts["source reading"] = 0.0
    whole = FP32 * made.num_trainable
    if case.sharded and world > 1:
        blocks = sum(p.numel() for block in blocks_of(bones.model.generator) for p in block.parameters())
        for name in ("trainable weights", "gradients", "optimizer states"):
            parts[name] /= world
        parts["gathered"] = 2 * (whole - FP32 * blocks)  # what is in no block stays whole to the end, with its gradient
    elif world > 1:
        parts["buckets"] = whole
    return sum(parts.values())


def _read_bytes(case: Case, bones: Skeleton) -> float:
    """From the store, for an example."""
    if case.reads:
        return 0.0
    config, given = bones.model.config, case.given
    tokens = given.prompt_tokens if config.visibility == "prompt" else given.tokens_per_example
    return float(tokens or 0) * len(config.taps) * config.d_source * BF16


def extraction(case: Case, machines: Machines) -> dict[str, float]:
    """The source of a case, tensor-parallel over a host, reads all examples once: bytes to keep, hours, shares."""
    bones = skeleton(case.settings.model, report=lambda _: None)
    body, given = Body.of(bones.source), case.given
    tokens = float(given.prompt_tokens or 0)
    work_s = body.forward_flops(tokens) / (machines.flops * machines.gpus_per_host)
    sent = 2 * body.num_layers * 2 * tokens * body.width * BF16  # two all-reduces a layer, each a scatter and a gather
    sent_s = machines.passing_s(sent, machines.gpus_per_host)
    examples = float(given.examples or 0)
    return {
        "store_tb": examples * _read_bytes(case, bones) / 1e12,
        "tokens_per_s_per_host": tokens / (work_s + sent_s),
        "hours_on_one_host": examples * (work_s + sent_s) / 3600,
        "share_of_sending": sent_s / (work_s + sent_s),
        "weights_gb_per_gpu": BF16 * bones.source.num_parameters() / machines.gpus_per_host / 1e9,
        "written_gb_per_s_per_host": _read_bytes(case, bones) / (work_s + sent_s) / 1e9,
    }


def shown(found: dict[str, list[dict[str, Any]]], read: dict[str, float]) -> str:
    """The page's part."""
    head = [
        "GPUs",
        "examples an update",
        "sent, GB a step",
        "memory, GB",
        "step, ms",
        "of it reading",
        "efficiency",
        "updates",
        "hours",
    ]
    parts = []
    for name, rows in found.items():
        lines = [
            [
                f"{row['gpus']}",
                f"{row['examples_per_update']:,}",
                f"{row['sent_gb']:.2f}",
                f"{row['memory_gb']:.1f}",
                f"{row['step_ms']:.1f}",
                f"{row['reading_ms']:.1f}",
                f"{rows[0]['step_ms'] / row['step_ms']:.0%}",
                f"{row['updates']:,.0f}",
                f"{row['hours']:.2g}",
            ]
            for row in rows
        ]
        parts.append(f"**{name}**\n\n{table(head, lines)}")
    parts.append(
        f"The 70B source, tensor-parallel over the GPUs of a host ({read['weights_gb_per_gpu']:.0f} GB of weights "
        f"on each), reads {read['tokens_per_s_per_host']:,.0f} tokens a second, {read['share_of_sending']:.0%} of the "
        f"time spent sending; the corpus takes {read['hours_on_one_host']:.0f} hours on one host and its states "
        f"{read['store_tb']:.0f} TB, written at {read['written_gb_per_s_per_host']:.2f} GB/s."
    )
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Compute, and put the tables into the page."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    made.add_argument("--output", type=Path, default=ROOT, help="folder for the page and the figures")
    given = made.parse_args(arguments)
    machines = Machines()
    with tempfile.TemporaryDirectory() as folder:
        ways = cases(Path(folder))
        found = {case.name: scaled(case, machines) for case in ways}
        read = extraction(ways[-1], machines)
    text = f"{shown(found, read)}\n\nComputed by `python -m benchmarks.scaling`, not measured."
    print(text)
    page = given.output / "docs" / "scaling.md"
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    write_text(page, with_block(before, text, block="computed"))
    figures = {"machines": asdict(machines), "training": found, "reading": read}
    write_text(given.output / "benchmarks" / "scaling.json", json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
