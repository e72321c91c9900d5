"""`llm-modules sweep`: train and judge every point of a sweep file, whatever befalls the others."""

import json
import multiprocessing
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from multiprocessing.connection import wait
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig

from llm_modules.checksums import read_json
from llm_modules.errors import UserError
from llm_modules.files import remove_half_written
from llm_modules.folders import alone_in
from llm_modules.settings import ModelSettings, nearest_key, parse_override
from llm_modules.shapes import OF_SOURCE, skeleton
from llm_modules.sweep_file import Run, Sweep
from llm_modules.sweep_report import summary, write_report
from llm_modules.sweep_run import INTERRUPTED, Order, carry_out, clear, problems_of, record, settings_of

GENERATOR = "model.generator."


def sweep(found: Sweep, *, output: Path | None, dry_run: bool, command: Sequence[str], jobs: int = 1) -> int:
    """All of `llm-modules sweep`.

    Args:
        found: The sweep file, worked out.
        output: Folder for figures and report; `None` is `runs/sweeps/` and the file's name.
        dry_run: Only say what would be done.
        command: What the user typed, to print how to go on.
        jobs: Runs carried out at once.

    Returns:
        How many runs failed.

    Raises:
        UserError: For anything in the file that cannot be used, and if the folder holds another sweep.
    """
    folder = output or Path("runs/sweeps") / found.path.stem
    orders = _orders(found, folder / "runs")
    check_models(found)
    figures = _finished(orders, found.path)
    for line in _overview(found, figures, folder):
        print(line)
    if dry_run:
        return 0
    with alone_in(folder, what="sweep"):
        remove_half_written(folder)
        remove_half_written(folder / "runs")
        page = _carry_out_all(found, orders, figures, folder, command, jobs=jobs)
    print("\n" + summary(found, list(figures.values())))
    print(f"\nreport:  {page}\nfigures: {folder / 'table.json'}")
    return sum("failed" in one for one in figures.values())


def _carry_out_all(
    found: Sweep,
    orders: Sequence[Order],
    figures: dict[str, dict[str, Any]],
    folder: Path,
    command: Sequence[str],
    *,
    jobs: int,
) -> Path:
    """Carry out what is not finished, adding to `figures`; the report is written anew after each run."""
    left = [order for order in orders if order.name not in figures]
    working: list[_Work] = []
    if jobs > 1:
        threads = max(1, torch.get_num_threads() // jobs)
        left = [replace(order, num_threads=threads) for order in left]
        print(f"{jobs} runs at once, {threads} threads each; what they print is in {folder}/runs/*.log")
    try:
        for number, order in enumerate(left):
            if len(working) == jobs:
                _take_up(_first_ended(working), found, figures, folder)
            done = [one["run_s"] for one in figures.values() if "run_s" in one]
            rounds = (len(left) - number + len(working)) / jobs
            time_left = f"; about {fmean(done) * max(rounds, 1.0) / 60:.0f} min left" if done else ""
            resumed = ", resumed" if order.work.exists() else ""
            which = f"run {len(orders) - len(left) + number + 1} of {len(orders)}"
            print(f"\n{which}: {order.point}, seed {order.seed}{resumed}{time_left}", flush=True)
            working.append(_Work(order, limit_s=found.file.max_run_s))
        while working:
            _take_up(_first_ended(working), found, figures, folder)
    except KeyboardInterrupt:
        for work in working:
            work.process.join()  # they got Ctrl-C too, and keep a checkpoint
        print(f"finished runs are kept in {folder}; to go on: {shlex.join(command)}")
        raise
    finally:
        for work in working:
            work.stop()
    for order in orders:
        if "failed" not in figures[order.name] and not found.file.keep_models:
            clear(order)
    return write_report(found, list(figures.values()), folder)


def _take_up(order: Order, found: Sweep, figures: dict[str, dict[str, Any]], folder: Path) -> None:
    """Add a run that has ended to the figures and to the report."""
    figures[order.name] = read = read_json(order.figures)
    write_report(found, list(figures.values()), folder)
    if order.num_threads is not None:
        print(f"ended: {order.point}, seed {order.seed}, {len(figures)} in all", flush=True)
    if "failed" in read:
        print(f"failed: {read['failed']}")


class _Work:
    """A run at work in a process of its own.

    Args:
        order: What it is to do.
        limit_s: When it has taken too long; `None` for never.
    """

    def __init__(self, order: Order, *, limit_s: float | None):
        self.order, self.limit_s = order, limit_s
        context = multiprocessing.get_context("forkserver")  # no threads, no device held: safe to fork from
        context.set_forkserver_preload([carry_out.__module__])  # slow to import: once for all runs
        self.process = context.Process(target=carry_out, args=(order,))
        order.figures.unlink(missing_ok=True)  # of an attempt that failed
        self.process.start()
        self.begun = time.monotonic()

    @property
    def left_s(self) -> float | None:
        """Seconds that it may go on; `None` for any number."""
        return None if self.limit_s is None else max(0.0, self.begun + self.limit_s - time.monotonic())

    def stop(self) -> None:
        """Leave no process behind."""
        self.process.kill()
        self.process.join()

    def end(self) -> Order:
        """Of a run that has ended, or has no time left: its order, with its figures or why there are none on disk.

        Raises:
            KeyboardInterrupt: If it ended because the user stopped it.
        """
        overdue = self.process.is_alive()
        self.stop()
        if overdue:
            record(
                self.order, {"failed": f"took longer than max_run_s={self.limit_s:g}; the same command goes on with it"}
            )
        if self.process.exitcode == INTERRUPTED:
            raise KeyboardInterrupt
        if not self.order.figures.is_file():
            record(
                self.order,
                {
                    "failed": f"its process ended with code {self.process.exitcode} and no word"
                    + (", killed by the system, most often for want of memory" if self.process.exitcode == -9 else "")
                },
            )
        return self.order


def _first_ended(working: list[_Work]) -> Order:
    """Wait until a run has ended or has no time left, and take it from those at work."""
    ended: list[_Work] = []
    while not ended:
        left = [work.left_s for work in working if work.left_s is not None]
        wait([work.process.sentinel for work in working], min(left, default=None))
        ended = [work for work in working if not work.process.is_alive() or work.left_s == 0.0]
    order = ended[0].end()
    working.remove(ended[0])
    return order


def _orders(found: Sweep, folder: Path) -> list[Order]:
    """What each run's process will be told, after a look at the questions."""
    _, problems = problems_of(found.judging)
    asked = "\n".join(f"{problem.question}\t{problem.answer}" for problem in problems)
    judged_by = found.judging.model_dump_json(exclude={"data"}) + blake2b(asked.encode()).hexdigest()

    def order(run: Run) -> Order:
        return Order(folder, run.name(judged_by), run.point.name, run.seed, run.settings, found.judging)

    return [order(run) for run in found.runs]


def check_models(found: Sweep) -> None:
    """Build every point's model without its weights, so that none fails for its shape after hours.

    Raises:
        UserError: If one cannot be built, sets a field that its generator does not have, or is the same as another.
    """
    common = [parse_override(override)[0] for override in found.file.common]
    built: list[tuple[ModelSettings, str]] = []
    names: dict[str, str] = {}
    for point, run in tqdm(list(zip(found.points, found.runs, strict=False)), desc="checking models"):
        chosen, where = run.settings.model, f"{found.path}, point {point.name!r}"
        if (shape := next((shape for model, shape in built if model == chosen), None)) is None:
            try:
                shape = _resolved(chosen)
                _check_generator_keys(chosen, [*common, *point.changes])
            except ValueError as error:
                raise UserError(f"{where}: {error}") from error
            built.append((chosen, shape))
        told = shape + run.settings.model_dump_json(exclude={"model"})
        if (other := names.setdefault(told, point.name)) != point.name:
            raise UserError(f"{where} comes to the same as {other!r}, once defaults are filled in; leave it out")


def _resolved(model: ModelSettings) -> str:
    """All choices of a model, what is left to defaults worked out."""
    parts = {*OF_SOURCE, *(["generator"] if isinstance(model.generator, str) else [])}  # pretrained: a name too
    config = skeleton(model, report=lambda _: None).model.config
    return json.dumps([model.model_dump(include=parts), config.to_dict()], sort_keys=True, default=str)


def _check_generator_keys(model: ModelSettings, keys: Sequence[str]) -> None:
    if isinstance(model.generator, str) or "model_type" not in model.generator:
        return
    known = AutoConfig.for_model(model.generator["model_type"])
    for key in keys:
        field = key.removeprefix(GENERATOR).partition(".")[0]
        if key.startswith(GENERATOR) and not hasattr(known, field):  # transformers would take it and be silent
            nearest = GENERATOR + nearest_key(field, sorted(known.to_dict()))
            raise UserError(f"unknown key {key}; the nearest known key is {nearest}")


def _finished(orders: Sequence[Order], path: Path) -> dict[str, dict[str, Any]]:
    """Figures of runs that have ended well, by name.

    Raises:
        UserError: If the folder holds runs of another sweep, or of other defaults.
    """
    ours, found = {order.name: order for order in orders}, {}
    for file in sorted(orders[0].folder.glob("*.json")):
        read = read_json(file)
        if "failed" in read:
            continue
        if file.stem not in ours:
            raise UserError(
                f"{file.parent} holds a finished run that {path} does not have: {read['point']}, seed {read['seed']}. "
                "Points and seeds can be added to a sweep; if others, their settings or the questions have changed, "
                "choose another --out"
            )
        for section, fields in settings_of(ours[file.stem]).items():
            for key, value in fields.items():
                if read["settings"][section].get(key, value) != value:
                    raise UserError(
                        f"{file} was made with {section}.{key}={read['settings'][section][key]}, and its default is "
                        f"{value} now; set it in {path}, or choose another --out"
                    )
        found[file.stem] = read
    return found


def _overview(found: Sweep, figures: dict[str, dict[str, Any]], folder: Path) -> Iterator[str]:
    """What the sweep comes to: points, runs, what is done, how long the rest may take."""
    yield f"{len(found.points)} points, {len(found.file.seeds)} seeds: {len(found.runs)} runs into {folder}"
    for point in found.points:
        same = f" (also {'; '.join(found.same_as_base)})" if not point.changes and found.same_as_base else ""
        yield f"  {point.name}{same}: " + (", ".join(f"{key}={value}" for key, value in point.changes.items()) or "-")
    left = len(found.runs) - len(figures)
    line = f"{len(figures)} finished, {left} to do"
    if figures and left:
        line += f": about {left * fmean(one['run_s'] for one in figures.values()) / 60:.0f} min, as those finished took"
    yield line
