"""`python -m benchmarks.kill9`: `kill -9` at random moments, and the same command again until it ends.

Training, extraction, saving over a model, and a sweep, each first without a kill; then in rounds of one to three kills,
each followed by the same command. After every kill nothing under a final name may be broken (`llm-modules doctor`); at
the end the parameters (of a store: the shards; of a sweep: also the table) must be those of the first run, bit for bit,
and nothing half-written may be left.
"""

import hashlib
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
import yaml

from benchmarks.results import parser, publish, table
from benchmarks.tiny_world import make_world, write_recipe
from llm_modules import CombinedModel
from llm_modules.checksums import read_json
from llm_modules.cli import app
from llm_modules.doctor import examine
from llm_modules.errors import UserError
from llm_modules.settings import load_settings
from llm_modules.store import plan
from llm_modules.store.reader import FeatureStore
from llm_modules.training import build_model

KILLS = {"training": 40, "extraction": 25, "saving": 25, "sweep": 10}
QUICK_KILLS = {"training": 3, "extraction": 2, "saving": 3, "sweep": 0}
MOST_KILLS = 3
CLOCKED = {"train_s", "train_cpu_s", "run_s", "resumed", "tokens_per_s", "peak_memory_gb", "peak_gb"}
LIMIT_S = 300


@dataclass(frozen=True)
class Victim:
    """A command that is killed.

    Args:
        name: Of the row.
        run: Does it into a folder, in a process of its own.
        result: What must be equal, read from the folder; names to bytes.
        kills_below: In every second kill, kill the process of one of its runs in its place.
    """

    name: str
    run: Callable[[Path], None]
    result: Callable[[Path], dict[str, bytes]]
    kills_below: bool = False


@dataclass
class Count:
    """What happened to a victim.

    Args:
        rounds: Begun in an empty folder and carried to the end.
        kills: In all of them.
        while_writing: Kills that left something half written, under a hidden name.
        with_result: Kills after which there was something to go on from.
        seconds: Without a kill.
    """

    rounds: int = 0
    kills: int = 0
    while_writing: int = 0
    with_result: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def victims(world: Path) -> list[Victim]:
    """All of them, in a tiny world."""
    _until_it_ends(Victim("world", _make, lambda _: {}), world)
    recipe = world / "recipe.yaml"
    sweep = world / "sweep.yaml"
    base = yaml.safe_load(write_recipe(world / "base.yaml", world).read_text(encoding="utf-8"))
    base["training"] |= {"max_steps": 9}
    evaluation = {"task": "jsonl", "data": str(world / "test.jsonl"), "verifier": "exact", "max_new_tokens": 2}
    whole = {"base": base, "evaluation": evaluation, "factors": {"model.num_heads": [1, 2]}, "keep_models": True}
    sweep.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return [
        Victim("training", lambda out: _call("train", recipe, f"training.output_dir={out}"), _trained),
        Victim("extraction", lambda out: _extract(recipe, out), _shards),
        Victim("saving", lambda out: _save(recipe, out), lambda out: _parameters(out / "model")),
        Victim("sweep", lambda out: _call("sweep", sweep, "--out", out), _swept, kills_below=True),
    ]


def run_rounds(victim: Victim, num_kills: int, *, folder: Path, draw: random.Random) -> Count:
    """Kill it in each round, call it again, and compare, until there were so many kills."""
    count = Count()
    started = time.perf_counter()
    _until_it_ends(victim, folder / "whole")
    count.seconds = time.perf_counter() - started
    right = _digest(victim, folder / "whole")
    while count.kills < num_kills:
        out = folder / f"round-{count.rounds}"
        wanted = draw.randint(1, MOST_KILLS)
        for _ in range(wanted):
            killed = _kill(victim, out, after_s=draw.uniform(0, count.seconds), draw=draw)
            count.kills += killed
            broken, count_half, begun = _look(out)
            if killed:
                count.while_writing += bool(count_half)
                count.with_result += begun
            count.wrong += [f"{victim.name}, round {count.rounds}: {one}" for one in broken]
        _until_it_ends(victim, out)
        count.rounds += 1
        if _digest(victim, out) != right:
            count.wrong.append(f"{victim.name}, round {count.rounds}: another result than without a kill")
        if left := [str(path) for path in out.rglob(".*.tmp")]:
            count.wrong.append(f"{victim.name}, round {count.rounds}: left {left}")
        print(f"{victim.name}: {count.rounds} rounds, {count.kills} kills, {len(count.wrong)} wrong", flush=True)
    return count


def _digest(victim: Victim, out: Path) -> str:
    """Of the result; computed in a process of its own, since a forked one can only do what its parent never began."""
    file = out.parent / f"{out.name}.sha256"

    def write(out: Path) -> None:
        whole = hashlib.sha256()
        for name, content in sorted(victim.result(out).items()):
            whole.update(f"{name} {len(content)} ".encode() + content)
        file.write_text(whole.hexdigest(), encoding="utf-8")

    _until_it_ends(Victim(f"result of {victim.name}", write, victim.result), out)
    return file.read_text(encoding="utf-8")


def _start(victim: Victim, out: Path) -> int:
    """The command in a forked process: all it imports is there."""
    if child := os.fork():
        return child
    code = 1
    try:
        with open(out.parent / f"{out.name}.log", "ab", buffering=0) as log:  # noqa: PTH123
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        victim.run(out)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def _kill(victim: Victim, out: Path, *, after_s: float, draw: random.Random) -> bool:
    """Whether it could be killed; it may have ended before."""
    child = _start(victim, out)
    ends = time.monotonic() + after_s
    while time.monotonic() < ends and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    killed = psutil.Process(child).status() != psutil.STATUS_ZOMBIE
    if killed and victim.kills_below and draw.random() < 0.5:
        below = psutil.Process(child).children(recursive=True)
        if below:  # as the system does when memory is short; the sweep writes it down and goes on
            below[-1].kill()
            _wait(child)
            return True
    if killed:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return killed


def _until_it_ends(victim: Victim, out: Path) -> None:
    for _ in range(3):  # a sweep ends with code 1 where one of its runs was killed before
        if _wait(_start(victim, out)) == 0:
            return
    log = (out.parent / f"{out.name}.log").read_text(encoding="utf-8", errors="replace")
    raise RuntimeError(f"{victim.name} does not end well in {out}:\n{log[-2000:]}")


def _wait(child: int) -> int:
    ends = time.monotonic() + LIMIT_S
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(found[1])


def _look(out: Path) -> tuple[list[str], int, bool]:
    """What is broken, how much is half written, and whether anything is there to go on from."""
    try:
        found = examine(out)
    except UserError:  # nothing there yet
        return [], 0, False
    broken = [f"{one.path} {one.says}" for one in found if one.state == "broken"]
    half = sum(one.what == "half written" for one in found)
    return broken, half, any(one.what in ("checkpoint", "feature store", "model", "figures") for one in found)


def _make(world: Path) -> None:
    make_world(world)


def _call(*arguments: object) -> None:
    app([str(argument) for argument in arguments])


def _extract(recipe: Path, out: Path) -> None:
    plan.SHARD_BYTES = 6_000  # some dozen of them
    _call("extract", recipe, "--out", out)


def _save(recipe: Path, out: Path) -> None:
    """Models of ever other weights into the same folder; the last one is always the same."""
    model = build_model(load_settings(recipe).model, seed=0)
    for value in range(8):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value / 8)
        model.save_pretrained(out / "model")
        CombinedModel.from_pretrained(out / "model", source=model.source)


def _parameters(folder: Path) -> dict[str, bytes]:
    """Bit for bit, of a model that loads."""
    named = CombinedModel.from_pretrained(folder).named_parameters()
    return {name: weight.detach().numpy().tobytes() for name, weight in named}


def _trained(out: Path) -> dict[str, bytes]:
    last = max((out / "checkpoints").iterdir(), key=lambda one: int(one.name.rpartition("-")[2]))
    history = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [[entry.get(key) for key in ("step", "loss", "eval_loss", "grad_norm")] for entry in history]
    return _parameters(out / "model") | {"losses": json.dumps(losses).encode()}


def _shards(out: Path) -> dict[str, bytes]:
    FeatureStore(out).verify()
    return {file.name: file.read_bytes() for file in sorted(out.glob("*.safetensors"))}


def _swept(out: Path) -> dict[str, bytes]:
    rows = read_json(out / "table.json")["points"]
    lasting = [{key: value for key, value in row.items() if key not in CLOCKED} for row in rows]
    found = {"rows": json.dumps(lasting).encode()}
    for model in sorted((out / "runs").glob("*/model")):
        found |= {f"{model.parent.name} {name}": weight for name, weight in _parameters(model).items()}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all rounds, print and publish; ends with an error if anything was wrong."""
    options = parser("kill9", __doc__.partition("\n")[0])
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    options.add_argument("--only", choices=list(KILLS), help="one victim")
    given, started = options.parse_args(arguments), time.perf_counter()
    torch.set_num_threads(1)  # forked
    print(f"seed {given.seed}")
    kills = QUICK_KILLS if given.quick else KILLS
    counts: dict[str, Count] = {}
    with tempfile.TemporaryDirectory() as folder:
        for victim in victims(Path(folder) / "world"):
            if kills[victim.name] and given.only in (None, victim.name):
                (own := Path(folder) / victim.name).mkdir()
                draw = random.Random(f"{given.seed} {victim.name}")
                counts[victim.name] = run_rounds(victim, kills[victim.name], folder=own, draw=draw)
    wrong = [one for count in counts.values() for one in count.wrong]
    head = ["killed", "rounds", "kills", "with something to go on from", "in the middle of a write", "wrong"]
    rows = [
        [name, *map(str, (one.rounds, one.kills, one.with_result, one.while_writing, len(one.wrong)))]
        for name, one in counts.items()
    ]
    rows.append(["all", *(str(sum(int(row[column]) for row in rows)) for column in range(1, len(head)))])
    if given.only is None:
        publish(
            "survival", given, command="python -m benchmarks.kill9", started=started, measured=table(head, rows),
            results={"seed": given.seed, "counts": {name: vars(one) for name, one in counts.items()}}, block="kill9",
        )  # fmt: skip
    else:
        print(table(head, rows))
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
