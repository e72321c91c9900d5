"""One run of a sweep, in a process of its own: trained, judged, and its figures written at once.

A process of its own, because what kills one run (the system's memory, most of all) then spares the others, and because
its peak of memory is its own.
"""

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_modules.checksums import write_json
from llm_modules.errors import UserError
from llm_modules.examination import ask
from llm_modules.machine import peak_gb
from llm_modules.run_folder import last_checkpoint
from llm_modules.settings import Settings
from llm_modules.sweep_file import Judging
from llm_modules.tasks import Problem, Task, get_task
from llm_modules.training import train

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C stopped."""
DEFAULT_PROBLEMS = 200


@dataclass(frozen=True)
class Order:
    """What a run's process is told.

    Args:
        folder: Where all runs of the sweep are.
        name: Of this one's files there.
        point: Name of its point.
        seed: Of its training.
        settings: Of its training, all but the folder.
        judging: By what it is judged.
        num_threads: Of its own, where others run beside it: it then prints into a file beside its figures.
    """

    folder: Path
    name: str
    point: str
    seed: int
    settings: Settings
    judging: Judging
    num_threads: int | None = None

    @property
    def figures(self) -> Path:
        """The file of its figures; there is one if and only if the run has ended."""
        return self.folder / f"{self.name}.json"

    @property
    def work(self) -> Path:
        """Folder of its checkpoints, loss picture and model."""
        return self.folder / self.name


def carry_out(order: Order) -> None:
    """Train and judge, and write the figures, or why there are none. Ends with the process that started this one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if order.num_threads is not None:
        torch.set_num_threads(order.num_threads)
        order.folder.mkdir(parents=True, exist_ok=True)
        said = os.open(order.folder / f"{order.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, sys.stdout.fileno())
        os.dup2(said, sys.stderr.fileno())
    try:
        found = _measure(order)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except UserError as error:
        found = {"failed": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever befalls one run, the others go on and it is written down
        found = {"failed": f"{type(error).__name__}: {error}"}
    record(order, found)


def record(order: Order, found: dict[str, Any]) -> None:
    """Write the figures of a run beside what it was."""
    told = {
        "point": order.point,
        "seed": order.seed,
        "evaluation": order.judging.model_dump(mode="json"),
        "settings": settings_of(order),
    }
    write_json(order.figures, told | found)


def settings_of(order: Order) -> dict[str, Any]:
    """All settings of a run that decide its figures, defaults written out."""
    fields = order.settings.model_dump(mode="json")
    del fields["training"]["output_dir"]
    return fields


def clear(order: Order) -> None:
    """Remove what only training needs; the figures, the settings and the loss picture stay."""
    for name in ("checkpoints", "model"):
        shutil.rmtree(order.work / name, ignore_errors=True)


def problems_of(judging: Judging) -> tuple[Task, list[Problem]]:
    """The task, and the questions that every run is asked.

    Raises:
        UserError: If there is no such task, or it does not go with the other choices.
    """
    task = get_task(str(judging.task), data=judging.data, verifier=judging.verifier)
    return task, task.test(judging.num_problems or (None if judging.data else DEFAULT_PROBLEMS), seed=judging.seed)


def _measure(order: Order) -> dict[str, Any]:
    task, problems = problems_of(order.judging)
    training = order.settings.training.model_copy(update={"output_dir": order.work})
    resumed = last_checkpoint(order.work / "checkpoints") is not None
    start, cpu_start = time.perf_counter(), time.process_time()
    folder = train(order.settings.model_copy(update={"training": training}))
    if folder.name != "model":
        raise KeyboardInterrupt
    train_s, train_cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    model, found = ask(folder, task, problems, max_new_tokens=order.judging.max_new_tokens, echo=print)
    return found.as_dict() | {
        "correct": [int(verdict.correct) for verdict in found.verdicts],
        "validation_loss_nats": _validation_loss(order),
        "trained_parameters": model.num_parameters(),
        "train_s": train_s,
        "train_cpu_s": train_cpu_s,
        "run_s": time.perf_counter() - start,
        "resumed": resumed,
        "peak_memory_gb": peak_gb(),
    }


def _validation_loss(order: Order) -> float | None:
    """Of the model that was saved: the last evaluation, or the best where training stops early."""
    last = last_checkpoint(order.work / "checkpoints")
    if last is None:
        return None
    history = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    stops_early = order.settings.training.early_stopping_patience is not None
    return (min(losses) if stops_early else losses[-1]) if losses else None


def _end_with_parent() -> None:
    """Nobody would see the figures of a run whose sweep was killed, and the next sweep wants its folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
