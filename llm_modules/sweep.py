"""`llm-modules sweep`: train and judge every point of a sweep file, whatever befalls the others."""

import json
import multiprocessing
import shlex
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from statistics import fmean
from typing import Any

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


def sweep(found: Sweep, *, output: Path | None, dry_run: bool, command: Sequence[str]) -> int:
    """All of `llm-modules sweep`.

    Args:
        found: The sweep file, worked out.
        output: Folder for figures and report; `None` is `runs/sweeps/` and the file's name.
        dry_run: Only say what would be done.
        command: What the user typed, to print how to go on.

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
        page = _carry_out_all(found, orders, figures, folder, command)
    print("\n" + summary(found, list(figures.values())))
    print(f"\nreport:  {page}\nfigures: {folder / 'table.json'}")
    return sum("failed" in one for one in figures.values())


def _carry_out_all(
    found: Sweep, orders: Sequence[Order], figures: dict[str, dict[str, Any]], folder: Path, command: Sequence[str]
) -> Path:
    """Carry out what is not finished, adding to `figures`; the report is written anew after each run."""
    left = [order for order in orders if order.name not in figures]
    for number, order in enumerate(left):
        done = [one["run_s"] for one in figures.values() if "run_s" in one]
        time_left = f"; about {fmean(done) * (len(left) - number) / 60:.0f} min left" if done else ""
        resumed = ", resumed" if order.work.exists() else ""
        which = f"run {len(orders) - len(left) + number + 1} of {len(orders)}"
        print(f"\n{which}: {order.point}, seed {order.seed}{resumed}{time_left}", flush=True)
        try:
            _in_own_process(order, limit_s=found.file.max_run_s)
        except KeyboardInterrupt:
            print(f"finished runs are kept in {folder}; to go on: {shlex.join(command)}")
            raise
        figures[order.name] = read = read_json(order.figures)
        write_report(found, list(figures.values()), folder)
        if "failed" in read:
            print(f"failed: {read['failed']}")
    for order in orders:
        if "failed" not in figures[order.name] and not found.file.keep_models:
            clear(order)
    return write_report(found, list(figures.values()), folder)


def _in_own_process(order: Order, *, limit_s: float | None) -> None:
    """Carry out a run; if its process ends without a word, say so in its place."""
    context = multiprocessing.get_context("forkserver")  # no threads, no device held: safe to fork from
    context.set_forkserver_preload([carry_out.__module__])  # slow to import: once for all runs
    process = context.Process(target=carry_out, args=(order,))
    order.figures.unlink(missing_ok=True)  # of an attempt that failed
    process.start()
    try:
        process.join(limit_s)
        if process.is_alive():
            record(order, {"failed": f"took longer than max_run_s={limit_s:g}; the same command goes on with it"})
    except KeyboardInterrupt:
        process.join()  # it got Ctrl-C too, and keeps a checkpoint
        raise
    finally:
        process.kill()
        process.join()
    if process.exitcode == INTERRUPTED:
        raise KeyboardInterrupt
    if not order.figures.is_file():
        record(
            order,
            {
                "failed": f"its process ended with code {process.exitcode} and no word"
                + (", killed by the system, most often for want of memory" if process.exitcode == -9 else "")
            },
        )


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
