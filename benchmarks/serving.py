"""`python -m benchmarks.serving`: what a server adds and what it saves, through OpenAI's client over the loopback.

`llm-modules serve` runs in a process of its own, with modules of the recipes' shapes on the default source; their
weights are random, because time does not depend on them, and no answer ends before its last token. What is compared
takes turns. Every prompt is new to the server, so that nothing is shared but what the comparison is about.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import torch

from benchmarks.bars import Bar, Figure, bars_table, record
from benchmarks.pairs import SEED, build, settings_of
from benchmarks.results import parser, publish, table
from llm_modules import CombinedModel, Source
from llm_modules.chat import Conversation, Sampling
from llm_modules.serving.passing import in_passing_thread
from llm_modules.serving.speakers import PairSpeaker, Rows, SpeakersTogether
from llm_modules.shared_reading import SharedReading

AT_ONCE = 8
TOKENS = 64  # of an answer, where answers at once are compared with answers one after another
FIRST_PROMPT = 200  # words of a prompt, about as many tokens, where the time to the first token is taken
SHARED_PROMPT, SHARED_TOKENS = 1000, 16
STEPS = 20
SHARERS = ("prompt", "prompt-2", "prompt-3", "prompt-4")
WORDS = ("river", "house", "green", "runs", "over", "small", "big", "stone", "light", "door", "hand", "road", "old")
BARS = {
    "serving_at_once_prompt": Bar(3),
    "serving_four_share": Bar(1.5, at_most=True),
    "serving_ttft_prompt": Bar(1.1, at_most=True),
    "serving_ttft_causal": Bar(1.1, at_most=True),
}


class Prompts:
    """Prompts nobody has seen, of about as many tokens as words."""

    def __init__(self) -> None:
        self._random = random.Random(SEED)
        self._num = 0

    def new(self, num_words: int) -> str:
        """One that shares nothing with the others but the template."""
        self._num += 1
        return " ".join([f"{self._num}.", *(self._random.choice(WORDS) for _ in range(num_words))])


def save_modules(folder: Path) -> dict[str, CombinedModel]:
    """Modules of the recipes' shapes, saved; their tokenizer knows no end."""
    source = Source.load("default")
    source.tokenizer.add_special_tokens({"eos_token": "<never>"})  # beyond the vocabulary, so never written
    made = {}
    for number, name in enumerate((*SHARERS, "causal")):
        model = build(settings_of(name.partition("-")[0]), source).eval()
        if number:
            torch.manual_seed(number)
            torch.nn.init.normal_(model.head.weight, std=1e-4)  # others' weights are others
        model.save_pretrained(folder / name)
        made[name] = model
    return made


@contextmanager
def server(folder: Path) -> Iterator[openai.OpenAI]:
    """A client of `llm-modules serve` in a process of its own."""
    command = [sys.executable, "-m", "llm_modules.cli", "serve", *(str(path) for path in sorted(folder.iterdir()))]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ}
        )
        try:
            line = process.stdout.readline()
            if " at http" not in line:
                log.seek(0)
                raise RuntimeError(f"the server did not start: {line}{log.read()}")
            address = line.split(" at ")[1].partition(",")[0]
            with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=600) as client:
                yield client
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def answer(client: openai.OpenAI, model: str, prompt: str, max_tokens: int) -> float:
    """Seconds to the end of an answer."""
    start = time.perf_counter()
    said = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens
    )
    assert said.usage.completion_tokens == max_tokens, said.usage
    return time.perf_counter() - start


def first_token(client: openai.OpenAI, model: str, prompt: str) -> float:
    """Seconds to the first text of a streamed answer."""
    start = time.perf_counter()
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], max_tokens=4, stream=True
    )
    with stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                return time.perf_counter() - start
    raise RuntimeError("no text came")


def first_token_of_library(talking: Conversation, prompt: str) -> float:
    """The same from `Conversation.ask`."""
    talking.reset()
    start = time.perf_counter()
    pieces = talking.ask(prompt)
    next(piece for piece in pieces if piece)
    seconds = time.perf_counter() - start
    pieces.close()
    return seconds


def all_at_once(calls: Sequence[Callable[[], float]]) -> float:
    """Seconds until the last of them is done."""
    with ThreadPoolExecutor(len(calls)) as pool:
        start = time.perf_counter()
        for future in [pool.submit(call) for call in calls]:
            future.result()
        return time.perf_counter() - start


def time_to_first_token(client: openai.OpenAI, talking: dict[str, Conversation], prompts: Prompts, repeats: int):
    """Seconds, by module and by way, in turns."""
    found = {name: {"library": [], "server": []} for name in talking}
    for turn in range(repeats + 1):
        for name, conversation in talking.items():
            through_library = first_token_of_library(conversation, prompts.new(FIRST_PROMPT))
            through_server = first_token(client, name, prompts.new(FIRST_PROMPT))
            if turn:
                found[name]["library"].append(through_library)
                found[name]["server"].append(through_server)
        print(f"  first token {turn}: {_last(found)}", flush=True)
    return found


def time_at_once(client: openai.OpenAI, models: Sequence[str], prompts: Prompts, repeats: int):
    """Seconds of eight answers, one after another and at once, in turns."""
    found = {name: {"one after another": [], "at once": []} for name in models}
    for turn in range(repeats):
        for name in models:
            asked = [prompts.new(20) for _ in range(2 * AT_ONCE)]
            calls = [lambda name=name, prompt=prompt: answer(client, name, prompt, TOKENS) for prompt in asked]
            found[name]["one after another"].append(sum(call() for call in calls[:AT_ONCE]))
            found[name]["at once"].append(all_at_once(calls[AT_ONCE:]))
        print(f"  at once {turn}: {_last(found)}", flush=True)
    return found


def time_shared(client: openai.OpenAI, prompts: Prompts, repeats: int):
    """Seconds until one module, and until four, have answered the same long prompt, in turns."""
    found = {"one": [], "four": []}
    for turn in range(repeats):
        for kind, names in (("one", SHARERS[:1]), ("four", SHARERS)):
            prompt = prompts.new(SHARED_PROMPT)
            calls = [lambda name=name, prompt=prompt: answer(client, name, prompt, SHARED_TOKENS) for name in names]
            found[kind].append(all_at_once(calls))
        print(f"  shared {turn}: one {found['one'][-1]:.2f} s, four {found['four'][-1]:.2f} s", flush=True)
    return found


def time_steps(models: Sequence[CombinedModel], repeats: int) -> dict[str, list[float]]:
    """Seconds of a token for eight answers, in turns, without a server.

    Of one module; of four with two each, module by module; and of those in one step.
    """
    shared = SharedReading(models[0].source)
    speakers = [PairSpeaker(model, shared) for model in models]
    each = AT_ONCE // len(speakers)

    def rows_of(speaker: PairSpeaker, num_rows: int) -> Rows:
        _, rows = speaker.begin(list(range(3, 43)))
        rows.repeat_(num_rows)
        return rows

    def step_of(step: Callable[..., object], rows: Rows, **others: Sequence[int]) -> Callable[[], object]:
        return lambda: step(torch.full((len(rows),), 3), rows, **others)

    joined = rows_of(speakers[0], each)
    for speaker in speakers[1:]:
        joined.join_(rows_of(speaker, each))
    ways = {
        "one": [step_of(speakers[0].step, rows_of(speakers[0], AT_ONCE))],
        "four": [step_of(speaker.step, rows_of(speaker, each)) for speaker in speakers],
        "together": [step_of(SpeakersTogether(speakers).step, joined, counts=[each] * len(speakers))],
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, steps in ways.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                for step in steps:
                    step()
            if turn:
                found[way].append((time.perf_counter() - start) / STEPS)
    print(
        f"  a token for {AT_ONCE}: " + ", ".join(f"{way} {took[-1]:.3f} s" for way, took in found.items()), flush=True
    )
    return found


def bytes_of_step(model: CombinedModel) -> int:
    """Bytes of weights that a module reads for a token, however many rows."""
    held = [*model.generator.parameters(), *model.bridge.layers.parameters()]
    return sum(weights.nbytes for weights in held) + model._folded_head.nbytes


def _last(found: dict[str, dict[str, list[float]]]) -> str:
    return ", ".join(
        f"{name} {way} {seconds[-1]:.3f} s" for name, ways in found.items() for way, seconds in ways.items() if seconds
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    given, started = parser("serving", __doc__.partition("\n")[0]).parse_args(arguments), time.perf_counter()
    repeats, prompts = 2 if given.quick else 5, Prompts()
    with tempfile.TemporaryDirectory() as temporary:
        # in passing, as the server loads: else the library's answers, in threads of their own, would be slower
        models = in_passing_thread(lambda: save_modules(Path(temporary)))
        tokenizer = models["prompt"].source.tokenizer
        steps = in_passing_thread(lambda: time_steps([models[name] for name in SHARERS], repeats))
        talking = {name: Conversation(models[name], tokenizer, Sampling(4)) for name in ("prompt", "causal")}
        with server(Path(temporary)) as client:
            first = time_to_first_token(client, talking, prompts, repeats)
            at_once = time_at_once(client, ("prompt",), prompts, 2 * repeats)
            at_once |= time_at_once(client, ("causal",), prompts, max(2, repeats - 2))  # half a minute a turn
            shared = time_shared(client, prompts, 2 * repeats)
    figures = {
        "serving_at_once_prompt": Figure.ratio(
            at_once["prompt"]["one after another"], at_once["prompt"]["at once"], BARS["serving_at_once_prompt"]
        ),
        "serving_four_share": Figure.ratio(shared["four"], shared["one"], BARS["serving_four_share"]),
    }
    for name, ways in first.items():
        figures[f"serving_ttft_{name}"] = Figure.ratio(ways["server"], ways["library"], BARS[f"serving_ttft_{name}"])
    rows = [
        *([f"first token, {name}", "library", "server", *_both(*ways.values())] for name, ways in first.items()),
        *(
            [f"{AT_ONCE} answers of {TOKENS} tokens, {name}", "one after another", "at once", *_both(*ways.values())]
            for name, ways in at_once.items()
        ),
        [f"one token for {AT_ONCE} answers", "of one module", "of four, each by itself",
         *_both(steps["one"], steps["four"])],
        [f"one token for {AT_ONCE} answers", "of one module", "of four, together",
         *_both(steps["one"], steps["together"])],
        [f"{SHARED_TOKENS} tokens after one prompt of {SHARED_PROMPT} words", "one module", "four modules",
         *_both(shared["one"], shared["four"])],
    ]  # fmt: skip
    record(figures, given)
    measured = "\n\n".join([table(("what", "a", "b", "a, s", "b, s", "b / a"), rows), bars_table(figures)])
    results = {"steps": steps, "bytes_of_step": bytes_of_step(models["prompt"]), "shared": shared}
    publish(
        "serving", given, command="python -m benchmarks.serving", block="serving", started=started, measured=measured,
        results={"seed": SEED, "first": first, "at_once": at_once, **results},
    )  # fmt: skip


def _both(one: Sequence[float], other: Sequence[float]) -> list[str]:
    ratio = Figure.ratio(other, one, Bar(0)).value
    return [*(f"{sorted(seconds)[len(seconds) // 2]:.3g}" for seconds in (one, other)), f"{ratio:.2f}"]


if __name__ == "__main__":
    main()
