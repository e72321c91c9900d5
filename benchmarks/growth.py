"""`python -m benchmarks.growth`: time of a token against its context, and of a training step against length and V.

Decoding with `prompt` visibility, default source and paper shapes. Training from given knowledge (random: time does not
depend on it), in the shape of `recipes/arithmetic.yaml`, batch 4, a fifth of each row the prompt.
"""

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Picture
from transformers import LlamaConfig

from benchmarks.bars import Bar, Figure, bars_table, record
from benchmarks.decoding_speed import REPEATS, SEED, Writer, default_stage, paper_stage
from benchmarks.pairs import build, settings_of
from benchmarks.results import STYLE, parser, publish, table
from llm_modules import CombinedModel, Knowledge, Source
from llm_modules.modeling import LEAK_WARNING
from llm_modules.optimizer import optimizer_of, update_
from llm_modules.settings import Settings

CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)
LENGTHS = (128, 256, 512, 1024)
VOCABULARIES = (8_192, 49_152, 151_936)
BATCH, LENGTH = 4, 256
BARS = {"growth_paper": Bar(1.3, at_most=True), "growth_default": Bar(1.5, at_most=True)}
COLOURS = {"source": "#5b6770", "pair, prompt": "#009e73"}


def token_times(models: Mapping[str, torch.nn.Module], contexts: Sequence[int]) -> dict[str, list[list[float]]]:
    """Seconds per token after each context: `REPEATS` rounds over all contexts, so that noise falls on all alike."""
    found: dict[str, list[list[float]]] = {name: [[] for _ in contexts] for name in models}
    writers = {(name, context): Writer(model, context) for name, model in models.items() for context in contexts}
    for writer in writers.values():
        writer.go_to(1)
        writer.seconds(1)  # warm
    for number in range(REPEATS):
        for (name, context), writer in writers.items():
            found[name][contexts.index(context)].append(statistics.median(writer.seconds(8)))
        shown = {name: [f"{1000 * times[-1]:.1f}" for times in several] for name, several in found.items()}
        print(f"  round {number + 1}, ms: {shown}", flush=True)
    return found


def step_times(
    settings: Settings, *, lengths: Sequence[int], vocabularies: Sequence[int]
) -> dict[str, dict[int, list[float]]]:
    """Seconds of a training step over lengths, at the default source's vocabulary, and over vocabularies."""
    stored = Source.load("default", tables_only=True)
    found: dict[str, dict[int, list[float]]] = {"length": {}, "vocabulary": {}}
    model = build(settings, stored)
    for length in lengths:
        found["length"][length] = _steps(model, settings, length)
    for vocab_size in vocabularies:
        shape = LlamaConfig(
            vocab_size=vocab_size, hidden_size=stored.config.hidden_size, num_hidden_layers=8, num_attention_heads=9,
            num_key_value_heads=3, intermediate_size=64,
        )  # fmt: skip
        found["vocabulary"][vocab_size] = _steps(build(settings, Source.of(shape)), settings, LENGTH)
    return found


def _steps(model: CombinedModel, settings: Settings, length: int) -> list[float]:
    config, prompt_len = model.config, length // 5
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.randint(3, config.vocab_size, (BATCH, length), generator=draw)
    labels = ids.masked_fill(torch.arange(length) < prompt_len, -100)
    states = torch.randn(BATCH, prompt_len, len(config.taps), config.d_source, generator=draw)
    knowledge = Knowledge(states, torch.ones(BATCH, prompt_len, dtype=torch.bool))
    optimizer, parameters = optimizer_of(model.train(), settings.training), list(model.parameters())
    seconds = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        update_(model(ids, labels=labels, knowledge=knowledge).loss, parameters, optimizer)
        seconds.append(time.perf_counter() - start)
    print(f"  step, length {length}, V {config.vocab_size:,}: {statistics.median(seconds[2:]):.3f} s", flush=True)
    return seconds[2:]


def picture(tokens: Mapping[str, Mapping[str, list[list[float]]]], contexts: Sequence[int], steps) -> Picture:
    """Three panels: tokens at both sizes, and training steps."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), width_ratios=(3, 3, 2, 2))
        for axis, (size, by_model) in zip(axes, tokens.items(), strict=False):
            for name, times in by_model.items():
                medians = [1000 * statistics.median(one) for one in times]
                axis.plot(contexts, medians, marker="o", color=COLOURS[name], label=name)
                axis.annotate(f"{medians[-1]:.0f}", (contexts[-1], medians[-1]), (4, 3), textcoords="offset points")
            axis.set(xscale="log", ylim=(0, None), title=f"A token, {size} size", xlabel="tokens of context")
            axis.set_xticks(contexts, [f"{context:,}" for context in contexts], rotation=45)
            axis.minorticks_off()
        axes[0].set_ylabel("milliseconds")
        axes[0].legend()
        for axis, (what, by_size) in zip(axes[2:], steps.items(), strict=True):
            axis.plot(list(by_size), [statistics.median(one) for one in by_size.values()], marker="o", color="#0072b2")
            axis.set(ylim=(0, None), title="A training step", xlabel=f"{what}", ylabel="seconds")
            axis.set_xticks(list(by_size), [f"{size:,}" for size in by_size], rotation=45)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    given, started = parser("growth", __doc__.partition("\n")[0]).parse_args(arguments), time.perf_counter()
    warnings.filterwarnings("ignore", message=LEAK_WARNING.partition(" lets")[0])
    contexts = CONTEXTS[:2] if given.quick else CONTEXTS
    settings = settings_of("prompt")
    print("training steps", flush=True)
    lengths, vocabularies = (LENGTHS[:2], VOCABULARIES[:2]) if given.quick else (LENGTHS, VOCABULARIES)
    steps = step_times(settings, lengths=lengths, vocabularies=vocabularies)
    tokens, figures, rows = {}, {}, []
    for make in (default_stage, lambda: paper_stage(small=given.quick)):
        stage = make()
        pair = stage.pairs["prompt"]
        pair.fold_head_()
        print(f"tokens, {stage.name} size", flush=True)
        tokens[stage.name] = found = token_times({"source": stage.source.model, "pair, prompt": pair}, contexts)
        for name, times in found.items():
            medians = [statistics.median(one) for one in times]
            rows.append(
                [stage.name, name, *(f"{1000 * one:.1f}" for one in medians), f"{medians[-1] / medians[0]:.2f}"]
            )
        key = f"growth_{stage.name}"
        figures[key] = Figure.ratio(found["pair, prompt"][-1], found["pair, prompt"][0], BARS[key])
        del stage, pair
    of_steps = [
        [what, f"{size:,}", f"{statistics.median(seconds):.3f}", f"{min(seconds):.3f}–{max(seconds):.3f}"]
        for what, by_size in steps.items()
        for size, seconds in by_size.items()
    ]
    record(figures, given)
    head = ("size", "milliseconds a token", *(f"{context:,}" for context in contexts), "last over first")
    step_table = table(("training step against", "", "seconds", "lowest–highest"), of_steps)
    publish(
        "performance", given, command="python -m benchmarks.growth", block="growth", started=started,
        measured=f"{table(head, rows)}\n\n{step_table}\n\n{bars_table(figures)}",
        figure=picture(tokens, contexts, steps), results={"seed": SEED, "tokens": tokens, "steps": steps},
    )  # fmt: skip


if __name__ == "__main__":
    main()
