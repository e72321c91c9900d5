"""`python -m benchmarks.source_bits`: what holding the source in fewer bits saves and costs.

The default source whole, in 8 bits and in 4: its weights, how fast it reads, how near its states stay, and the loss of
a pair trained on them (recipe `arithmetic`, same seed and order), on fresh problems.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.pairs import recipe_of
from benchmarks.results import parser, publish, table
from benchmarks.store_dtypes import SEED, SMALL, TEST_SEED, Size, loss_on, problems_of
from benchmarks.training import train_
from llm_modules import Source
from llm_modules.compare.loop import example_batches
from llm_modules.data.dataset import Collator, padding_id
from llm_modules.data.templates import with_template
from llm_modules.features import with_knowledge
from llm_modules.quantization import Quantization
from llm_modules.training import build_model

KINDS: tuple[Quantization | None, ...] = (None, "8bit", "4bit")
READS, REPEATS = (16, 128), 5


@dataclass(frozen=True)
class Finding:
    """What a source held in one way gave.

    Args:
        kind: How it is held.
        megabytes: Of its weights.
        tokens_per_s: Reading, each repeat.
        nearness: Mean cosine of its final states with those of the whole source.
        loss_nats: Of the pair, per token on fresh problems, over the full vocabulary.
    """

    kind: str
    megabytes: float
    tokens_per_s: list[float]
    nearness: float
    loss_nats: float


def measure(size: Size) -> Iterator[Finding]:
    """One pair for each way to hold the source."""
    settings = recipe_of("prompt")
    ids = torch.randint(100, 40_000, READS, generator=torch.Generator().manual_seed(SEED))
    whole: Tensor | None = None
    for kind in KINDS:
        source = Source.load("default", quantization=kind)
        states, speeds = _read(source, ids)
        whole = states if whole is None else whole
        tokenizer = with_template(source.tokenizer, settings.data.template)
        trained, judged = problems_of(size, settings, tokenizer, vocab_size=source.config.vocab_size)
        model = build_model(settings.model.model_copy(update={"source": source}), seed=SEED)
        kept = with_knowledge(model, [*trained, *judged], label=f"source reads, {kind or 'whole'}")
        collate = Collator(padding_id(tokenizer, vocab_size=source.config.vocab_size))
        batches = example_batches(model, kept[: len(trained)], settings.training, tokenizer, collate=collate)
        train_(model, batches, settings.training, steps=size.steps, label=kind or "whole")
        yield Finding(
            kind or "whole",
            source.model.get_memory_footprint() / 1e6,
            speeds,
            torch.cosine_similarity(states, whole, dim=-1).mean().item(),
            loss_on(model, kept[len(trained) :], collate),
        )


def _read(source: Source, ids: Tensor) -> tuple[Tensor, list[float]]:
    taps, mask, speeds = [source.config.num_hidden_layers], torch.ones_like(ids), []
    states = source.read(ids, attention_mask=mask, taps=taps)
    for _ in range(REPEATS):
        start = time.perf_counter()
        source.read(ids, attention_mask=mask, taps=taps)
        speeds.append(ids.numel() / (time.perf_counter() - start))
    return states.float(), speeds


def bits_table(findings: Sequence[Finding]) -> str:
    """A row for each way."""
    whole = findings[0]
    medians = [statistics.median(found.tokens_per_s) for found in findings]
    rows = [
        [
            found.kind,
            f"{found.megabytes:.0f}",
            f"{median:.0f} ({min(found.tokens_per_s):.0f}–{max(found.tokens_per_s):.0f})",
            f"{median / medians[0]:.2f}",
            f"{found.nearness:.4f}",
            f"{found.loss_nats:.4f}",
            f"{found.loss_nats - whole.loss_nats:+.4f}",
        ]
        for found, median in zip(findings, medians, strict=True)
    ]
    head = ["source", "MB", "tokens/s (low–high)", "against whole", "cosine", "pair's loss, nats", "against whole"]
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, train and judge, print and publish."""
    given, started = parser("source_bits", __doc__.partition("\n")[0]).parse_args(arguments), time.perf_counter()
    size = SMALL if given.quick else Size()
    findings = list(measure(size))
    publish(
        "performance", given, command="python -m benchmarks.source_bits", block="source-bits", started=started,
        measured=bits_table(findings),
        results={
            "seed": SEED, "test_seed": TEST_SEED, "size": asdict(size), "findings": [asdict(one) for one in findings],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
