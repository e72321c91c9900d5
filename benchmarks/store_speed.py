"""`python -m benchmarks.store_speed`: training from a feature store beside training from features held in memory.

The built-in arithmetic task, the pair of `recipes/arithmetic.yaml`, AdamW; each batch once from memory, once from the
store, in turns. Reading and padding the batch is part of the step. The store's checksums are checked as in every run.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.bars import Bar, Figure, bars_table, record
from benchmarks.pairs import build, settings_of
from benchmarks.results import parser, publish, table
from benchmarks.training import Inputs
from llm_modules import CombinedModel, Source
from llm_modules.compare.loop import with_given_knowledge
from llm_modules.data.dataset import Collator, prepare
from llm_modules.data.templates import Example, with_template
from llm_modules.features import distinct_texts, with_knowledge
from llm_modules.loss import LossVocabulary
from llm_modules.optimizer import optimizer_of, update_
from llm_modules.store.extraction import Extraction
from llm_modules.store.key import Key
from llm_modules.store.reader import FeatureStore
from llm_modules.store.training import StoreCollator
from llm_modules.tasks import get_task
from llm_modules.training import TrainingData

SEED, BATCH, ROUNDS = 0, 16, 25
BARS = {"store_vs_memory": Bar(0.95)}

Collate = Callable[[Sequence[Example]], Inputs]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read once for both, take turns, print and publish."""
    given, started = parser("store_speed", __doc__.partition("\n")[0]).parse_args(arguments), time.perf_counter()
    rounds = 3 if given.quick else ROUNDS
    settings = settings_of("prompt")
    source = Source.load("default")
    model = build(settings, source)
    tokenizer = with_template(source.tokenizer, settings.data.template)
    problems = get_task("arithmetic").train(BATCH * (rounds + 1), seed=SEED)
    examples, _ = prepare(
        [problem.messages() for problem in problems], tokenizer, max_length=256, vocab_size=model.config.vocab_size
    )
    held = with_knowledge(model, examples)
    with tempfile.TemporaryDirectory() as folder:
        key = Key.of(model, tokenizer, dtype=None)
        texts = distinct_texts(examples, visibility=model.config.visibility)
        Extraction(Path(folder), source=source, key=key, texts=texts).run()
        pad = Collator(0)
        ways: dict[str, tuple[Sequence[Example], Collate]] = {
            "memory": (held, pad),
            "store": (examples, StoreCollator(pad, FeatureStore(folder), model.config.visibility)),
        }
        found = {loss: take_turns(model, settings.training, ways, rounds, loss=loss) for loss in ("full", "sampled")}
    figures = {
        "store_vs_memory": Figure.ratio(found["full"]["memory"], found["full"]["store"], BARS["store_vs_memory"])
    }
    rows = [
        [loss, way, f"{1000 * statistics.median(seconds):.1f}", f"{1000 * min(seconds):.1f}–{1000 * max(seconds):.1f}",
         f"{statistics.median(by_way['memory']) / statistics.median(seconds):.3f}"]
        for loss, by_way in found.items() for way, seconds in by_way.items()
    ]  # fmt: skip
    record(figures, given)
    head = ("loss", "features from", "milliseconds a step", "lowest–highest", "speed against memory")
    publish(
        "performance", given, command="python -m benchmarks.store_speed", block="store", started=started,
        measured=f"{table(head, rows)}\n\n{bars_table(figures)}", results={"seed": SEED, **found},
    )  # fmt: skip


def take_turns(
    model: CombinedModel, settings, ways: dict[str, tuple[Sequence[Example], Collate]], rounds: int, *, loss: str
) -> dict[str, list[float]]:
    """Seconds of the steps of each way, on the same batches; the first round only warms up."""
    optimizer, parameters = optimizer_of(model.train(), settings), list(model.parameters())
    vocabulary = None
    if loss == "sampled":
        vocabulary = LossVocabulary.sample(
            TrainingData(list(ways["memory"][0]), []).trained_words, num_random=settings.sampled_words,
            vocab_size=model.config.vocab_size, generator=torch.Generator().manual_seed(SEED),
        )  # fmt: skip
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, (examples, collate) in ways.items():
            start = time.perf_counter()
            inputs = with_given_knowledge(collate(examples[number * BATCH : (number + 1) * BATCH]))
            update_(model(**inputs, loss_vocabulary=vocabulary).loss, parameters, optimizer)
            if number:
                found[way].append(time.perf_counter() - start)
    return found


if __name__ == "__main__":
    main()
