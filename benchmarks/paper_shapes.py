"""`python -m benchmarks.paper_shapes`: does the paper's pair fit, how long does it take, and did `plan` know?

Weights are random: time and memory do not depend on them, and no model hub is needed. Figures go to
`benchmarks/paper_shapes.json`, one entry for each number type of the source.
"""

import argparse
import json
import platform
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from benchmarks.limits import bandwidth_gb_per_s, matmul_tflops
from benchmarks.watch import Watch
from llm_modules import CombinedModel, Source
from llm_modules.corpus import Corpus
from llm_modules.files import write_text
from llm_modules.loss import rows_per_chunk
from llm_modules.modeling import LEAK_WARNING
from llm_modules.optimizer import optimizer_of, update_
from llm_modules.planning import Plan, plan
from llm_modules.settings import Settings, load_settings
from llm_modules.shapes import choices_of, known_shape

ROOT = Path(__file__).parents[1]
SEED = 0
MODELS = {"source": "Qwen/Qwen2-1.5B", "generator": "EleutherAI/gpt-neo-125m"}
PUBLISHED, BEST = "published", "source's head"
WIRINGS = {PUBLISHED: "paper.yaml", BEST: "paper-best.yaml"}
PEAK_GB = {"float32": 12.0, "bfloat16": 9.0}  # what the pair must fit in
WITHIN = {"memory": 0.15, "time": 0.30}  # how near `plan` must come
SMALL_SHAPES: dict[str, dict[str, Any]] = {
    "source": {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "vocab_size": 1000,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "generator": {"hidden_size": 48, "num_layers": 2, "attention_types": [[["global", "local"], 1]]},
}


def main(arguments: list[str] | None = None) -> bool:
    """Measure, compare with the plan, print, and write the figures; whether all checks hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_shapes", description=__doc__.partition("\n")[0])
    parser.add_argument("--source-dtype", choices=list(PEAK_GB), default="float32")
    parser.add_argument("--small", action="store_true", help="the same at toy shapes, in seconds; writes no figures")
    parser.add_argument("--tokens", type=int, default=None, help="tokens of the training step (512; 64 if small)")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message=LEAK_WARNING.partition(" lets")[0])
    tokens = given.tokens or (64 if given.small else 512)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.source_dtype, tokens=tokens, small=given.small)
    for name, holds in found["checks"].items():
        print(f"{'ok  ' if holds else 'MISS'} {name}")
    if not given.small:
        file = ROOT / "benchmarks" / "paper_shapes.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        write_text(file, json.dumps(known | {given.source_dtype: found}, indent=1) + "\n")
    return all(found["checks"].values())


def measure(folder: Path, dtype: str, *, tokens: int, small: bool) -> dict[str, Any]:
    """All phases, in one process; only loading the stored source has a process of its own.

    Args:
        folder: An empty one, for the source.
        dtype: Number type of the source.
        tokens: Length of the training example.
        small: Toy shapes.
    """
    torch.manual_seed(SEED)
    shapes = {part: known_shape(name, **(SMALL_SHAPES[part] if small else {})) for part, name in MODELS.items()}
    rates = measure_rates(shapes["source"], shapes["generator"], getattr(torch, dtype), tokens)
    print(f"{tokens} tokens, {torch.get_num_threads()} threads; TFLOP/s of matrix products, GB/s of memory: {rates}")
    watch = Watch()
    with watch.phase("make the source"):
        source = random_source(shapes["source"], getattr(torch, dtype))
    with watch.phase("fingerprint the source"):
        source.fingerprint  # noqa: B018 - computed once, on asking
    shapes["source"].save_pretrained(folder)
    results: dict[str, Any] = {"wirings": {}}
    checks: dict[str, bool] = {}
    for wiring, recipe in WIRINGS.items():
        settings = settings_of(recipe, folder, shapes["generator"], dtype, tokens)
        planned = plan(settings, corpus=corpus_of(tokens))
        measured = run_pair(wiring, source, shapes["generator"], settings, tokens, watch)
        results["wirings"][wiring] = compared = compare(planned, measured, rates, head=wiring)
        checks |= {f"{wiring}: {name}": holds for name, holds in verdicts(compared, dtype, small=small).items()}
    new, own = (results["wirings"][wiring]["parameters"]["measured"] for wiring in (PUBLISHED, BEST))
    counted = published_parameters(shapes["source"], shapes["generator"])
    checks[f"published layers counted by hand: {counted:,}"] = counted == new
    checks[f"fewer than half with the source's head: {own:,} of {new:,}"] = 2 * own < new or small
    results["loading"] = loading = store_and_load(source, folder, dtype, watch, small=small)
    checks["loading the stored source does not double it"] = loading["peak_over_weights"] < 1.5 or small
    machine = {"threads": torch.get_num_threads(), "processor": platform.machine(), "torch": torch.__version__}
    phases = {name: {"seconds": watch.seconds[name], "peak_gb": gb} for name, gb in watch.peak_gb.items()}
    print_table(results)
    return rounded(
        {"tokens": tokens, "machine": machine, "rates": rates, "phases": phases, **results, "checks": checks}
    )


def random_source(config: PreTrainedConfig, dtype: torch.dtype) -> Source:
    """A source of some shape with cheap random weights, in memory once: transformers' own start takes minutes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device="cpu")
    model.tie_weights()  # each use of a tied table was given memory of its own
    body = model.base_model
    body.rotary_emb = type(body.rotary_emb)(config)  # its frequencies are no weights, and were lost
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(SEED)).mul_(config.initializer_range).to(dtype)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1.0)  # norms; a bias of one is as good as another
            continue
        flat = parameter.data.view(-1)
        for part in flat.split(len(block)):
            part.copy_(block[: len(part)])
    return Source.of(model, dtype=dtype)


def measure_rates(
    source: PreTrainedConfig, generator: PreTrainedConfig, dtype: torch.dtype, tokens: int
) -> dict[str, float]:
    """TFLOP/s of this machine at the shapes that most of a step consists of, and GB/s of its memory."""
    D, d, V = source.hidden_size, generator.hidden_size, source.vocab_size
    rows = min(tokens, rows_per_chunk(V))
    return {
        "source": matmul_tflops(tokens, D, source.intermediate_size, dtype),
        "generator": matmul_tflops(tokens, d, 4 * d, torch.float32),
        PUBLISHED: matmul_tflops(rows, d, V, torch.float32),
        BEST: matmul_tflops(rows, D, V, dtype),
        "memory": bandwidth_gb_per_s(),
    }


def settings_of(recipe: str, source: Path, generator: PreTrainedConfig, dtype: str, tokens: int) -> Settings:
    """A recipe's settings, for the shapes at hand and one length."""
    overrides = {
        "model.source": str(source),
        "model.source_dtype": dtype,
        "model.generator": {"model_type": generator.model_type, **generator.to_diff_dict()},
        "data.max_length": tokens,
        "data.cut_to": tokens,
        "data.loss_on": "all",
        "training.gradient_accumulation_steps": 1,
    }
    return load_settings(ROOT / "recipes" / recipe, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])


def corpus_of(tokens: int) -> Corpus:
    """Examples of one length, too many for their knowledge to be kept."""
    return Corpus(10_000_000, 0, tokens, tokens / 4, tokens, "this benchmark")


def run_pair(
    wiring: str, source: Source, generator: PreTrainedConfig, settings: Settings, tokens: int, watch: Watch
) -> dict[str, Any]:
    """Build a pair, train it for two steps, and let it write."""
    with watch.phase(f"{wiring}: build"):
        model = CombinedModel.from_modules(source, generator, **choices_of(settings.model))
    ids = torch.randint(source.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(SEED))
    optimizer, parameters = optimizer_of(model.train(), settings.training, fused=True), list(model.parameters())
    losses, norm = [], settings.training.max_grad_norm
    for step in ("first step", "second step"):  # the first one also makes the optimizer's states
        with watch.phase(f"{wiring}: {step}"):
            losses.append(update_(model(ids, labels=ids).loss, parameters, optimizer, max_grad_norm=norm))
    optimizer.zero_grad()
    with watch.phase(f"{wiring}: 32 tokens"):
        written = model.eval().generate(
            ids[:, : tokens // 4], min_new_tokens=32, max_new_tokens=32, do_sample=False, eos_token_id=None
        )
    assert written.shape[1] == tokens // 4 + 32
    return {
        "parameters": model.num_parameters(),
        "frozen": source.model.num_parameters(),
        "peak_gb": max(watch.peak_gb[f"{wiring}: {phase}"] for phase in ("first step", "second step")),
        "seconds": watch.seconds[f"{wiring}: second step"],
        "losses": losses,
    }


def published_parameters(source: PreTrainedConfig, generator: PreTrainedConfig) -> int:
    """The published layers, counted from their description alone: with GPT-Neo's position table, without its words."""
    D, d, V, inner, adapter = source.hidden_size, generator.hidden_size, source.vocab_size, 4, 256
    middle = (D + d) // 2

    def linear(wide: int, narrow: int) -> int:
        return wide * narrow + narrow

    def norm(width: int) -> int:
        return 2 * width

    entrance = linear(D, D) + linear(D, middle) + norm(middle) + linear(middle, d) + norm(d) + linear(D, d)
    attention = norm(d) + norm(D) + 2 * linear(d, d) + 2 * linear(D, d)
    attention += linear(d, adapter) + linear(adapter, d) + norm(d) + linear(2 * d, d)
    block = 2 * norm(d) + 3 * d * d + linear(d, d) + linear(d, inner * d) + linear(inner * d, d)
    gpt_neo = generator.num_layers * block + norm(d) + generator.max_position_embeddings * d
    return entrance + 2 * attention + gpt_neo + d * V


def compare(planned: Plan, measured: dict[str, Any], rates: dict[str, float], *, head: str) -> dict[str, Any]:
    """The plan's figures beside what was measured, each part of the work at the rate of its own shape."""
    work = planned.per_example
    parts = {"source": work.reading, "generator": work.learning - work.head, head: work.head}
    seconds = sum(flops / rates[part] for part, flops in parts.items()) / 1e12
    seconds += planned.moved_per_step / rates["memory"] / 1e9
    return {
        "parameters": {"planned": planned.num_trainable, "measured": measured["parameters"]},
        "frozen": {"planned": planned.frozen, "measured": measured["frozen"]},
        "peak_gb": {"planned": sum(planned.memory["cpu"].values()) / 1e9, "measured": measured["peak_gb"]},
        "step_s": {"planned": seconds, "measured": measured["seconds"]},
        "planned_memory_gb": {part: size / 1e9 for part, size in planned.memory["cpu"].items()},
        "losses": measured["losses"],
    }


def verdicts(compared: dict[str, Any], dtype: str, *, small: bool) -> dict[str, bool]:
    """Whether the pair fits, and whether the plan was right; toy shapes only have parameters to be right about."""
    found = {
        f"{what} as planned: {pair['measured']:,}": pair["measured"] == pair["planned"]
        for what, pair in ((what, compared[what]) for what in ("parameters", "frozen"))
    }
    if small:
        return found
    peak, step = compared["peak_gb"], compared["step_s"]
    found[f"peak {peak['measured']:.2f} GB, at most {PEAK_GB[dtype]:g}"] = peak["measured"] <= PEAK_GB[dtype]
    for what, pair in (("memory", peak), ("time", step)):
        error = pair["planned"] / pair["measured"] - 1
        found[f"{what} planned within {WITHIN[what]:.0%}: {error:+.0%}"] = abs(error) <= WITHIN[what]
    return found


def store_and_load(source: Source, folder: Path, dtype: str, watch: Watch, *, small: bool) -> dict[str, float]:
    """Save the source as a folder, and load it in a process of its own, which shows how much memory that takes.

    At toy shapes it is loaded here: they show nothing about memory, and a process takes seconds to begin.
    """
    weights_gb = sum(parameter.nbytes for parameter in source.model.parameters()) / 1e9
    with watch.phase("save the source"):
        source.model.save_pretrained(folder, max_shard_size="500MB")  # a shard is copied once while it is written
    if small:
        before_gb, peak_gb, seconds = load_source(folder, dtype)
    else:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            before_gb, peak_gb, seconds = fresh.submit(load_source, folder, dtype).result()
    print(f"  load the source: {seconds:.1f} s, {before_gb:.2f} GB before, peak {peak_gb:.2f} GB")
    return {
        "seconds": seconds,
        "weights_gb": weights_gb,
        "peak_gb": peak_gb,
        "peak_over_weights": (peak_gb - before_gb) / weights_gb,
    }


def load_source(folder: Path, dtype: str) -> tuple[float, float, float]:
    """Memory before, its peak, and the seconds that loading takes; run in a fresh process."""
    watch, before = Watch(), psutil.Process().memory_info().rss / 1e9
    with watch.phase("load"):
        loaded = Source.load(folder, dtype=getattr(torch, dtype))
        for parameter in loaded.model.parameters():  # files are mapped: until it is used, a weight takes no memory
            parameter.sum()
    return before, watch.peak_gb["load"], watch.seconds["load"]


def print_table(results: dict[str, Any]) -> None:
    """Planned beside measured."""
    print(f"\n{'':16} {'':12} {'planned':>15} {'measured':>15}")
    for wiring, compared in results["wirings"].items():
        for what in ("parameters", "frozen", "peak_gb", "step_s"):
            pair = compared[what]
            shown = [
                f"{pair[side]:15,}" if what in ("parameters", "frozen") else f"{pair[side]:15.2f}" for side in pair
            ]
            print(f"{wiring:16} {what:12} {' '.join(shown)}")
        print(f"{'':16} planned, GB: {', '.join(f'{k} {v:.2f}' for k, v in compared['planned_memory_gb'].items())}")
    loading = results["loading"]
    print(f"loading: {loading['weights_gb']:.2f} GB of weights, peak {loading['peak_gb']:.2f} GB\n")


def rounded(tree: Any) -> Any:
    """The same with floats to four digits."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.4g}") if isinstance(tree, float) else tree


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
