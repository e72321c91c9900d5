"""`python -m benchmarks.store_dtypes`: what each number type of the feature store takes and costs, and its speed.

One pair on arithmetic per type, all else equal (recipe `arithmetic`, seed, order), its knowledge read from a store of
that type, and one with it in memory; each is judged on the same fresh problems with knowledge of its own type.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from benchmarks.pairs import recipe_of
from benchmarks.results import STYLE, parser, publish, table
from benchmarks.training import train_
from llm_modules import CombinedModel, Source
from llm_modules.compare.loop import example_batches, with_given_knowledge
from llm_modules.data.dataset import Collator, padding_id, prepare
from llm_modules.data.templates import Example, with_template
from llm_modules.features import distinct_texts, with_knowledge
from llm_modules.plots import INK
from llm_modules.settings import Settings
from llm_modules.store.encoding import StoredDtype
from llm_modules.store.extraction import Extraction
from llm_modules.store.key import Key
from llm_modules.store.reader import FeatureStore
from llm_modules.store.training import StoreCollator
from llm_modules.tasks.arithmetic import TASK
from llm_modules.training import build_model

SEED = 0
TEST_SEED = 1
DTYPES: tuple[StoredDtype, ...] = ("float32", "bfloat16", "float16", "int8")
KINDS = ("memory", *DTYPES)


@dataclass(frozen=True)
class Size:
    """How much is trained and judged; the defaults are the full size."""

    num_examples: int = 1200
    num_judged: int = 100
    steps: int = 150


SMALL = Size(num_examples=24, num_judged=4, steps=2)


@dataclass(frozen=True)
class Finding:
    """What knowledge kept in one way gave.

    Args:
        kind: `memory`, or the store's number type.
        megabytes: What it takes.
        loss_nats: Mean loss per token on fresh problems, over the full vocabulary.
        steps_per_s: Training, reading included; from the median step.
    """

    kind: str
    megabytes: float
    loss_nats: float
    steps_per_s: float


def measure(size: Size, folder: Path) -> Iterator[Finding]:
    """One pair per way to keep the knowledge."""
    settings = recipe_of("prompt")
    source = Source.load("default")
    tokenizer = with_template(source.tokenizer, settings.data.template)
    trained, judged = problems_of(size, settings, tokenizer, vocab_size=source.config.vocab_size)
    collator = Collator(padding_id(tokenizer, vocab_size=source.config.vocab_size))
    for kind in KINDS:
        model = build_model(settings.model.model_copy(update={"source": source}), seed=SEED)
        if kind == "memory":
            kept = with_knowledge(model, [*trained, *judged], label="source reads")
            examples, fresh, collate = kept[: len(trained)], kept[len(trained) :], collator
            size_bytes = sum(states.nbytes for states in {id(e.knowledge): e.knowledge for e in kept}.values())
        else:
            texts = distinct_texts([*trained, *judged], visibility=model.config.visibility)
            key = Key.of(model, tokenizer, dtype=kind)
            Extraction(folder / kind, source=source, key=key, texts=texts).run()
            examples, fresh = trained, judged
            collate = StoreCollator(collator, FeatureStore(folder / kind), model.config.visibility)
            size_bytes = sum(path.stat().st_size for path in (folder / kind).glob("*.safetensors"))
        ends: list[float] = []
        batches = example_batches(model, examples, settings.training, tokenizer, collate=collate)
        train_(
            model, batches, settings.training, steps=size.steps, label=kind,
            each=lambda _, ends=ends: ends.append(time.perf_counter()),
        )  # fmt: skip
        seconds = [later - earlier for earlier, later in pairwise(ends)]
        median = sorted(seconds)[len(seconds) // 2]
        yield Finding(kind, size_bytes / 1e6, loss_on(model, fresh, collate), 1 / median)


def problems_of(
    size: Size, settings: Settings, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int
) -> tuple[list[Example], list[Example]]:
    """Problems to train on, and fresh ones to judge by."""
    trained, judged = (
        prepare(
            [problem.messages() for problem in problems],
            tokenizer,
            max_length=settings.data.max_length,
            vocab_size=vocab_size,
        )[0]
        for problems in (TASK.train(size.num_examples, seed=SEED), TASK.test(size.num_judged, seed=TEST_SEED))
    )
    return trained, judged


@torch.no_grad()
def loss_on(model: CombinedModel, examples: Sequence[Example], collate) -> float:
    """Mean over the response tokens of all examples."""
    total = num_tokens = 0.0
    for start in range(0, len(examples), 20):
        batch = examples[start : start + 20]
        tokens = sum(len(example.response_ids) for example in batch)
        total += model(**with_given_knowledge(collate(batch))).loss.item() * tokens
        num_tokens += tokens
    return total / num_tokens


def dtype_table(findings: Sequence[Finding]) -> str:
    """A row for each way to keep knowledge."""
    memory = findings[0]
    rows = [
        [
            found.kind,
            f"{found.megabytes:.1f}",
            f"{found.loss_nats:.4f}",
            f"{found.loss_nats - memory.loss_nats:+.4f}",
            f"{found.steps_per_s:.2f}",
            f"{found.steps_per_s / memory.steps_per_s:.2f}",
        ]
        for found in findings
    ]
    return table(["knowledge", "MB", "loss, nats", "against memory", "steps/s", "against memory"], rows)


def dtype_figure(findings: Sequence[Finding]) -> Figure:
    """Loss on fresh problems over what the knowledge takes."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 3.6))
        for found in findings:
            axes.plot(found.megabytes, found.loss_nats, "o", color=INK)
            axes.annotate(found.kind, (found.megabytes, found.loss_nats), xytext=(4, 4), textcoords="offset points")
        axes.set(xlabel="megabytes", ylabel="loss on fresh problems (nats per token)", xlim=(0, None))
        axes.margins(y=0.3)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and judge a pair per way to keep the knowledge."""
    given = parser("store_dtypes", __doc__).parse_args(arguments)
    size = SMALL if given.quick else Size()
    started = time.perf_counter()
    print(f"seed {SEED}, test seed {TEST_SEED}, {size}")
    with tempfile.TemporaryDirectory() as folder:
        findings = list(measure(size, Path(folder)))
    publish(
        "store-dtypes",
        given,
        command="python -m benchmarks.store_dtypes",
        measured=dtype_table(findings),
        figure=dtype_figure(findings),
        results={
            "seed": SEED,
            "test_seed": TEST_SEED,
            "size": asdict(size),
            "findings": [asdict(found) for found in findings],
        },
        started=started,
    )


if __name__ == "__main__":
    main()
