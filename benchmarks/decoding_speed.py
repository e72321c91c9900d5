"""`python -m benchmarks.decoding_speed`: tokens per second, time to first token and memory of answers, side by side.

Every model writes through transformers' `generate`, after a prompt of 512 tokens, with the same kind of cache,
threads and dtype. Time per token is taken at eight places of the answer and integrated: caches are filled with random
numbers up to each place, because time does not depend on what stands in them. Models take turns at each place, so that
a slow minute of the machine falls on all. Weights of the pairs are random for the same reason.
"""

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from benchmarks import yardstick
from benchmarks.bars import Bar, Figure, bars_table, record
from benchmarks.limits import bandwidth_gb_per_s
from benchmarks.pairs import RECIPE_OF, recipe_of
from benchmarks.paper_shapes import MODELS, SMALL_SHAPES, random_source
from benchmarks.results import parser, publish, table
from llm_modules import CombinedModel, Source
from llm_modules.baselines import GeneratorAlone
from llm_modules.growing import GrowingLayer, growing_cache
from llm_modules.knowledge import CombinedCache
from llm_modules.modeling import LEAK_WARNING
from llm_modules.shapes import choices_of, known_shape

SEED = 0
REPEATS = 5
TOKENS = {1: 4, 8: 1}  # written at a place, in one call of `generate`, by batch
PROMPT = 512
PLACES = (1, 33, 65, 129, 257, 513, 769, 1003)  # of an answer
ANSWERS = (64, 256, 1024)
JUDGED = 256  # tokens of the answer that the bars are about
BARS = {
    "decode_prompt_vs_source_paper": Bar(4),
    "decode_prompt_vs_source_paper_new_head": Bar(6),
    "decode_prompt_vs_source_default": Bar(4),
    "ttft_vs_prefill": Bar(1.15, at_most=True),
    "decode_causal_overhead": Bar(1.25, at_most=True),
    "decode_prompt_vs_naive": Bar(30),
    "decode_causal_vs_naive": Bar(10),
    "decode_share_of_bandwidth": Bar(0.6),
}


class Clock(LogitsProcessor):
    """Notes when each token's logits are there, and changes nothing but that none may end the answer."""

    def __init__(self, never: Sequence[int]) -> None:
        self.times: list[float] = []
        self.never = list(never)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Called by `generate` before a token is chosen."""
        self.times.append(time.perf_counter())
        scores[:, self.never] = -torch.inf
        return scores


@dataclass
class Writer:
    """A model that writes from any place of an answer on.

    Args:
        model: Source or pair.
        prompt_len: Tokens of the prompt.
        batch: Rows.
    """

    model: PreTrainedModel
    prompt_len: int
    batch: int = 1
    _cache: Cache | None = field(default=None, init=False, repr=False)
    _length: int = field(default=0, init=False)

    def go_to(self, place: int) -> None:
        """Fill the cache up to this token of the answer."""
        self._cache = filled_cache(self.model, prompt_len=self.prompt_len, written=place - 1, batch=self.batch)
        self._length = self.prompt_len + place

    @torch.no_grad()
    def seconds(self, tokens: int) -> list[float]:
        """Write so many tokens after one that is not timed; the seconds of each."""
        ids = torch.full((self.batch, self._length), 3)
        clock = Clock([])
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=self._cache,
            max_new_tokens=tokens + 1,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([clock]),
        )
        self._length += tokens + 1
        return [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]


def filled_cache(model: PreTrainedModel, *, prompt_len: int, written: int, batch: int) -> Cache:
    """A cache as after a prompt and an answer of so many tokens, filled with random numbers."""
    ids = torch.full((batch, 4), 3)
    if not isinstance(model, CombinedModel):
        cache = growing_cache(model.config)
        with torch.no_grad():
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return _refill(cache, prompt_len + written)
    combined = CombinedCache(model.config)
    with torch.no_grad():
        model(ids, past_key_values=combined, use_cache=True, logits_to_keep=1)
    entered = prompt_len
    if model._window_size is not None and prompt_len > model._window_size:
        entered = model._window_size
        combined.num_left_out = prompt_len - entered
        combined.window_mask = torch.ones(batch, entered, dtype=torch.bool)
    _refill(combined.self_attention_cache, entered + written)
    reads_answer = combined.source_cache is not None
    _refill(combined.cross_attention_cache, prompt_len + (written if reads_answer else 0))
    if combined.source_cache is not None:
        _refill(combined.source_cache, prompt_len + written)
    if combined.prompt_mask is not None:
        combined.prompt_mask = torch.ones(batch, prompt_len, dtype=torch.bool)
    return combined


def _refill(cache: Cache, length: int) -> Cache:
    for index, layer in enumerate(cache.layers):
        shape = layer.keys.shape
        room = cache.layers[index] = GrowingLayer()
        room.update(*torch.randn(2, *shape[:2], length, shape[3]))
    return cache


def time_per_token(writers: Mapping[str, Writer], places: Sequence[int] = PLACES) -> dict[str, list[list[float]]]:
    """Seconds per token of each, at each place: `REPEATS` medians, models taking turns."""
    found: dict[str, list[list[float]]] = {name: [] for name in writers}
    for place in places:
        for writer in writers.values():
            writer.go_to(place)
            writer.seconds(1)  # warm
        turns: dict[str, list[float]] = {name: [] for name in writers}
        for _ in range(REPEATS):
            for name, writer in writers.items():
                turns[name].append(statistics.median(writer.seconds(TOKENS[writer.batch])))
        for name, seconds in turns.items():
            found[name].append(seconds)
        shown = ", ".join(f"{name} {1000 * statistics.median(seconds):.1f}" for name, seconds in turns.items())
        print(f"  token {place}: ms {shown}", flush=True)
    return found


def integrate(seconds: Sequence[float], tokens: int, places: Sequence[int] = PLACES) -> float:
    """Seconds of an answer of so many tokens, from those at places: straight lines between them."""
    total = 0.0
    for token in range(1, tokens + 1):
        right = next((index for index, place in enumerate(places) if place >= token), len(places) - 1)
        left = max(0, right - 1)
        span = places[right] - places[left]
        share = 1.0 if not span else min(1.0, (token - places[left]) / span)
        total += seconds[left] + share * (seconds[right] - seconds[left])
    return total


@torch.no_grad()
def time_to_first_token(
    models: Mapping[str, PreTrainedModel], prompt_len: int, repeats: int = REPEATS
) -> dict[str, list[float]]:
    """Seconds from a prompt to its first token, by `generate`, models taking turns; the source's is its prefill."""
    found: dict[str, list[float]] = {name: [] for name in models}
    ids = torch.randint(3, 1000, (1, prompt_len), generator=torch.Generator().manual_seed(0))
    for turn in range(repeats + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
            if turn:  # the first only warms up
                found[name].append(time.perf_counter() - start)
    return found


@torch.no_grad()
def time_of_naive_loop(
    model: CombinedModel, places: Sequence[int], prompt_len: int, *, batch: int = 1, repeats: int = REPEATS
) -> list[list[float]]:
    """Seconds per token of the published code's loop, which computes source, pair and all logits anew for each."""
    found = []
    for place in places:
        ids = torch.full((batch, prompt_len + place), 3)
        is_prompt = (torch.arange(ids.shape[1]) < prompt_len).expand_as(ids)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            model(ids, prompt_mask=is_prompt, use_cache=False).logits[:, -1].argmax(-1)
            seconds.append(time.perf_counter() - start)
        found.append(seconds)
        print(f"  naive, token {place}: {1000 * statistics.median(seconds):.0f} ms", flush=True)
    return found


@dataclass(frozen=True)
class Stage:
    """Models of one size side by side.

    Args:
        name: `default` or `paper`.
        source: What reads.
        pairs: By what they are called.
        alone: The generator of the `causal` pair as a language model of its own.
        naive: By the pair they are compared with: the same pair with the published wiring.
    """

    name: str
    source: Source
    pairs: Mapping[str, CombinedModel]
    alone: PreTrainedModel
    naive: Mapping[str, CombinedModel]

    @property
    def models(self) -> dict[str, PreTrainedModel]:
        """All that write with a cache."""
        return {"source": self.source.model, **self.pairs, "generator alone": self.alone}


def default_stage() -> Stage:
    """The default source and pairs in the shapes that meet the accuracy bars."""
    source, pairs, naive = Source.load("default"), {}, {}
    for visibility in RECIPE_OF:
        settings = recipe_of(visibility).model
        choices = choices_of(settings)
        pairs[visibility] = _pair(source, settings.generator, **choices)
        published = choices | {"visibility": "bidirectional", "start": "published"}
        naive[visibility] = _pair(source, settings.generator, **published)
    return Stage("default", source, pairs, _alone(pairs["causal"], source), naive)


def paper_stage(*, small: bool) -> Stage:
    """The paper's shapes, with random weights."""
    shapes = {part: known_shape(name, **(SMALL_SHAPES[part] if small else {})) for part, name in MODELS.items()}
    source = random_source(shapes["source"], torch.float32)
    pairs = {
        "prompt": _pair(source, shapes["generator"], num_bridge_layers=2, visibility="prompt"),
        "prompt, new head": _pair(source, shapes["generator"], num_bridge_layers=2, visibility="prompt", head="new"),
        "causal": _pair(source, shapes["generator"], num_bridge_layers=2, visibility="causal"),
    }
    return Stage("paper", source, pairs, _alone(pairs["causal"], source), {})


def published_pair(stage: Stage) -> CombinedModel:
    """The stage's generator wired as published, its head included."""
    generator = stage.pairs["prompt"].config.generator
    return _pair(stage.source, generator, num_bridge_layers=2, visibility="bidirectional", head="new")


def _pair(source: Source, generator, **choices) -> CombinedModel:
    torch.manual_seed(SEED)
    return CombinedModel.from_modules(source, generator, **choices).eval()


def _alone(pair: CombinedModel, source: Source) -> PreTrainedModel:
    config, vocab_size = pair.config.generator, source.config.vocab_size
    torch.manual_seed(SEED)
    return GeneratorAlone.from_config(
        config, vocab_size=vocab_size, generation_config=source.model.generation_config
    ).model.eval()


def bytes_per_token(model: PreTrainedModel, length: int) -> int:
    """Bytes that a token at this length must read: weights that meet it, and the keys and values before it."""
    if not isinstance(model, CombinedModel):
        body = (
            sum(weight.nbytes for weight in model.base_model.parameters()) - model.get_input_embeddings().weight.nbytes
        )
        return body + model.get_output_embeddings().weight.nbytes + _cache_bytes(model, length)
    size = sum(weight.nbytes for weight in model.generator.parameters())
    size += sum(part.nbytes for name, part in model.bridge.named_parameters() if not _reads_knowledge(name, model))
    if model.config.visibility != "prompt":
        size += sum(weight.nbytes for weight in model.source.model.base_model.parameters())
        size -= model.source.embedding.nbytes
    folded = model._folded_head
    head = folded.nbytes if folded is not None else sum(weight.nbytes for weight in model.head.parameters())
    if folded is None and model.config.head == "source":
        head += model.source.output_matrix.nbytes
    return size + head + _cache_bytes(model, length)


def bytes_held(model: PreTrainedModel, length: int, batch: int) -> int:
    """Bytes of all weights and of the caches after so many tokens; a pair's hold its source's too."""
    size = sum(weight.nbytes for weight in model.parameters()) + _cache_bytes(model, length, batch)
    if isinstance(model, CombinedModel):
        size += sum(weight.nbytes for weight in model.source.model.parameters())
        size += 0 if model._folded_head is None else model._folded_head.nbytes
    return size


def _reads_knowledge(name: str, model: CombinedModel) -> bool:
    """Whether a weight of the bridge meets the prompt only."""
    over_prompt = ("pre_projection", "compress", "skip_projection", ".key.", ".value.", "knowledge_norm", "mix")
    return model.config.visibility == "prompt" and any(part in f".{name}" for part in over_prompt)


def _cache_bytes(model: PreTrainedModel, length: int, batch: int = 1) -> int:
    cache = filled_cache(model, prompt_len=PROMPT, written=max(0, length - PROMPT), batch=batch)
    caches = [cache]
    if isinstance(cache, CombinedCache):
        caches = [cache.self_attention_cache, cache.cross_attention_cache, *cache._own_caches]
    return sum(layer.keys.nbytes + layer.values.nbytes for one in caches for layer in one.layers)


def measure_stage(stage: Stage, *, batches: Sequence[int], places: Sequence[int]) -> dict:
    """Everything of one size: seconds of answers by batch, model and round; seconds to the first token."""
    _fold_heads_(stage, num_rows=1)
    print(f"{stage.name}: to the first token after {PROMPT} tokens", flush=True)
    first = time_to_first_token(
        {name: model for name, model in stage.models.items() if name != "generator alone"}, PROMPT
    )
    answers: dict[int, dict[str, dict[int, list[float]]]] = {}
    for batch in batches:
        print(f"{stage.name}: batch {batch}", flush=True)
        _fold_heads_(stage, num_rows=batch)
        writers = {name: Writer(model, PROMPT, batch) for name, model in stage.models.items()}
        found = time_per_token(writers, places)
        answers[batch] = {name: _answers(turns, places) for name, turns in found.items()}
    naive = {}
    for name, model in stage.naive.items():
        near = [place for place in places if place <= 2 * JUDGED]
        naive[name] = _answers(time_of_naive_loop(model, near, PROMPT), near)
    return {"first": first, "answers": answers, "naive": naive}


def _fold_heads_(stage: Stage, *, num_rows: int) -> None:
    """What `generate` does once per model, not per answer."""
    for pair in stage.pairs.values():
        pair.fold_head_(num_rows)


def _answers(turns: Sequence[Sequence[float]], places: Sequence[int]) -> dict[int, list[float]]:
    """Seconds of answers of `ANSWERS` tokens, by round."""
    rounds = list(zip(*turns, strict=True))
    return {tokens: [integrate(seconds, tokens, places) for seconds in rounds] for tokens in ANSWERS}


def figures_of(stage: Stage, found: dict, limit: float) -> dict[str, Figure]:
    """What is held to bars."""
    single = {name: answer[JUDGED] for name, answer in found["answers"][1].items()}
    parts = [a + b for a, b in zip(single["source"], single["generator alone"], strict=True)]
    first = found["first"]
    figures = {
        "ttft_vs_prefill": Figure.ratio(first["prompt"], first["source"], BARS["ttft_vs_prefill"]),
        "decode_causal_overhead": Figure.ratio(single["causal"], parts, BARS["decode_causal_overhead"]),
    }
    for pair in stage.pairs:
        if pair.startswith("prompt"):
            key = f"decode_prompt_vs_source_{stage.name}" + ("_new_head" if "new" in pair else "")
            figures[key] = Figure.ratio(single["source"], single[pair], BARS[key])
    for name, naive in found["naive"].items():
        whole = [a + statistics.median(first[name]) for a in single[name]]
        figures[f"decode_{name}_vs_naive"] = Figure.ratio(naive[JUDGED], whole, BARS[f"decode_{name}_vs_naive"])
    if stage.name == "paper":
        allowed = bytes_per_token(stage.pairs["prompt"], PROMPT + JUDGED // 2) * JUDGED / limit / 1e9
        needed = single["prompt"]
        key = "decode_share_of_bandwidth"
        figures[key] = Figure.ratio([allowed] * len(needed), needed, BARS[key])
    return figures


def rows_of(stage: Stage, found: dict, limit: float) -> list[list[str]]:
    """The table: a row for each model and batch."""
    rows = []
    for batch, by_model in found["answers"].items():
        for name, answers in by_model.items():
            size = bytes_per_token(stage.models[name], PROMPT + JUDGED // 2)
            held = bytes_held(stage.models[name], PROMPT + JUDGED, batch)
            first = found["first"].get(name, []) if batch == 1 else []
            shown = _shown(stage.name, batch, name, answers, by_model["source"], first)
            share = f"{JUDGED * size / statistics.median(answers[JUDGED]) / limit / 1e9:.0%}" if batch == 1 else "–"
            rows.append([*shown, f"{held / 1e6:,.0f}", f"{size / 1e6:,.0f}", share])
    source = found["answers"][1]["source"]
    for name, answers in found["naive"].items():
        timed = {tokens: seconds for tokens, seconds in answers.items() if tokens <= JUDGED}
        rows.append([*_shown(stage.name, 1, f"naive loop, as {name}", timed, source, []), "–", "–", "–"])
    if "llama.cpp" in found:
        first, answers = found["llama.cpp"]
        rows.append([*_shown(stage.name, 1, "llama.cpp, 4-bit weights", answers, source, first), "–", "–", "–"])
    return rows


def _shown(
    size: str,
    batch: int,
    name: str,
    answers: Mapping[int, Sequence[float]],
    source: Mapping[int, Sequence[float]],
    first: Sequence[float],
) -> list[str]:
    """Speeds of one row."""
    speeds = [batch * tokens / statistics.median(answers[tokens]) if tokens in answers else None for tokens in ANSWERS]
    low, high = (batch * JUDGED / end(answers[JUDGED]) for end in (max, min))
    times = statistics.median(source[JUDGED]) / statistics.median(answers[JUDGED])
    return [
        size,
        str(batch),
        name,
        *("–" if speed is None else f"{speed:.3g}" if speed < 1 else f"{speed:.1f}" for speed in speeds),
        f"{low:.3g}–{high:.3g}",
        f"{times:.2g}" if times < 1 else f"{times:.2f}",
        f"{statistics.median(first):.2f}" if first else "–",
    ]


HEAD = ("size", "batch", "model", *(f"tokens/s, {tokens}" for tokens in ANSWERS), f"spread, {JUDGED}",
        "times the source", "first token, s", "MB held", "MB read a token", "share of bandwidth")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both sizes, print and publish."""
    given, started = parser("decoding_speed", __doc__.partition("\n")[0]).parse_args(arguments), time.perf_counter()
    warnings.filterwarnings("ignore", message=LEAK_WARNING.partition(" lets")[0])  # it is what the naive loop is about
    limit = bandwidth_gb_per_s()
    print(f"memory bandwidth {limit:.1f} GB/s; {torch.get_num_threads()} threads; seed {SEED}", flush=True)
    places = PLACES[:2] if given.quick else PLACES
    rows, figures, found = [], {}, {}
    for make in (default_stage, lambda: paper_stage(small=given.quick)):
        stage = make()
        found[stage.name] = measured = measure_stage(stage, batches=(1,) if given.quick else (1, 8), places=places)
        if stage.name == "default" and yardstick.is_there():
            answers = (JUDGED,) if given.quick else ANSWERS
            measured["llama.cpp"] = yardstick.measure([3] * PROMPT, answers=answers, repeats=REPEATS)
        rows += rows_of(stage, measured, limit)
        for name, figure in figures_of(stage, measured, limit).items():
            known = figures.get(name)  # of two sizes the worse one counts; both such bars are upper ones
            if known is None or figure.value > known.value:
                figures[name] = figure
        del stage, measured
    record(figures, given)
    parts = [table(HEAD, rows), *([] if yardstick.is_there() else [f"{yardstick.MISSING}."]), bars_table(figures)]
    publish(
        "performance", given, command="python -m benchmarks.decoding_speed", block="decoding", started=started,
        measured="\n\n".join(parts), results={"seed": SEED, "gb_per_s": limit, **found},
    )  # fmt: skip


if __name__ == "__main__":
    main()
