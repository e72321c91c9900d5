"""Competitors in processes of their own that take turns: noise falls on all alike, and each has its own memory.

A competitor is built by a function that returns its actions by name; `python -m benchmarks.rounds MODULE:FUNCTION JSON`
runs it, reads `[action, arguments]` a line and answers with a line of figures.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from tqdm.auto import tqdm


@dataclass(frozen=True)
class Turn:
    """What one action took.

    Args:
        seconds: Of the action alone.
        peak_gb: Most resident memory of its process meanwhile.
        value: What the action returned.
    """

    seconds: float
    peak_gb: float
    value: Any


@dataclass
class Competitor:
    """One process and all its turns so far; end it with `with`.

    Args:
        name: What it is called.
        build: `module:function`, called with the arguments in the new process.
        arguments: What JSON can carry.
    """

    name: str
    build: str
    arguments: dict[str, Any]
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    base_gb: float = 0.0
    built_gb: float = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.rounds", self.build, json.dumps(self.arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            answer = self._answer()
        except RuntimeError:
            self.__exit__()
            raise
        self.base_gb, self.built_gb = answer["base_gb"], answer["built_gb"]
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def turn(self, action: str, *arguments: Any, keep: bool = True) -> Turn:
        """Let it act; a turn that is not kept only warms up, and counts for nothing but memory."""
        self._process.stdin.write(json.dumps([action, arguments]) + "\n")
        self._process.stdin.flush()
        turn = Turn(**self._answer())
        if keep:
            self.turns.setdefault(action, []).append(turn)
        return turn

    def seconds(self, action: str = "step") -> list[float]:
        """Of every kept turn."""
        return [turn.seconds for turn in self.turns[action]]

    def peaks_gb(self, action: str = "step") -> list[float]:
        """Of every kept turn, the whole process."""
        return [turn.peak_gb for turn in self.turns[action]]

    def median(self, action: str = "step") -> float:
        """Seconds of a kept turn."""
        return statistics.median(self.seconds(action))

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer


def take_turns(competitors: Sequence[Competitor], *, warm_up: int, repeats: int, label: str) -> None:
    """Round after round, one `step` of each competitor; all take the same batch in the same round."""
    rounds = warm_up + repeats
    with tqdm(total=rounds * len(competitors), desc=label, unit=" steps") as progress:
        for index in range(rounds):
            for competitor in competitors:
                competitor.turn("step", index, keep=index >= warm_up)
                progress.update()


def _serve(build: str, arguments: dict[str, Any]) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers

    def reply(**answer: Any) -> None:
        print(json.dumps(answer), file=replies, flush=True)

    from benchmarks.watch import Watch  # torch is part of every process's base

    try:
        module, _, function = build.partition(":")
        make = getattr(importlib.import_module(module), function)
        base = Watch(quiet=True)
        with base.phase("base"):
            pass
        with base.phase("build"):
            actions = make(**arguments)
        reply(base_gb=base.peak_gb["base"], built_gb=base.peak_gb["build"])
        for line in sys.stdin:
            action, given = json.loads(line)
            watch = Watch(quiet=True)
            with watch.phase(action):
                value = actions[action](*given)
            reply(seconds=watch.seconds[action], peak_gb=watch.peak_gb[action], value=value)
    except Exception:  # noqa: BLE001 - whatever it is, the parent must hear of it
        reply(error=traceback.format_exc())


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
