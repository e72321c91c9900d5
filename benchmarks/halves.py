"""`python -m benchmarks.halves RECIPE`: the pair beside its halves at the recipe's full length, several seeds.

`llm-modules compare` gives all the same budget, which is rarely what a recipe takes; here each trains as long as the
recipe says, on the same examples in the same order, and is asked the same held-out questions; the source, which does
not train, is shown solved examples. A run that has ended is kept and not trained again.
"""

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.results import folder_of, parser, publish, table
from llm_modules.baselines import GeneratorAlone
from llm_modules.data.templates import with_template
from llm_modules.evaluation import Evaluation, evaluate, judge
from llm_modules.few_shot import write_prompted
from llm_modules.files import write_text
from llm_modules.machine import machine
from llm_modules.pages import share
from llm_modules.settings import load_settings
from llm_modules.source import Source
from llm_modules.sweep_report import averaged, difference, more_than
from llm_modules.tasks import Problem, Task, get_task
from llm_modules.training import build_model, fit, load_data, load_source

PAIR, ALONE, SOURCE = "pair", "generator alone", "source, few-shot"
Ask = Callable[[Task, list[Problem]], Evaluation]
NUM_SHOTS = 3  # where a task does not say how many suit it


@dataclass(frozen=True)
class Run:
    """One training and its examination.

    Args:
        row: `pair`, `generator alone`, `source, few-shot`, or a variant: of the generator alone if its name begins so,
            else of the pair.
        seed: Of the random weights, and of the order of the examples.
        recipe: A recipe's file.
        changes: `KEY=VALUE` for the recipe.
        tasks: Names of the tasks asked.
        data: File of the questions, for tasks that have one.
        num_problems: Questions of each task; all of the file's if left out.
        question_seed: Of the questions.
        max_new_tokens: Most tokens of an answer.
        folder: Where its checkpoints and figures go.
    """

    row: str
    seed: int
    recipe: Path
    changes: tuple[str, ...]
    tasks: tuple[str, ...]
    data: str | None
    num_problems: int | None
    question_seed: int
    max_new_tokens: int
    folder: Path = field(compare=False)

    @property
    def done(self) -> Path:
        """Its figures, when there are any."""
        return self.folder / f"{self.row.replace(' ', '-')}-{self.seed}.json"

    @property
    def work(self) -> Path:
        """Its checkpoints, while it trains."""
        return self.done.with_suffix("")

    def told(self) -> dict[str, Any]:
        """What its figures depend on, beside row and seed."""
        settings = load_settings(self.recipe, self.changes).model_dump(mode="json")
        del settings["training"]["output_dir"]
        return {
            "settings": settings,
            "tasks": list(self.tasks),
            "data": self.data,
            "num_problems": self.num_problems,
            "question_seed": self.question_seed,
            "max_new_tokens": self.max_new_tokens,
        }


def carry_out(run: Run, *, threads: int | None = None) -> dict[str, Any]:
    """Train, ask, and write down; figures for JSON."""
    told = run.told()
    if run.done.is_file():
        known: dict[str, Any] = json.loads(run.done.read_text(encoding="utf-8"))
        if known["told"] != told:
            raise SystemExit(f"{run.done} was made with other settings or questions; remove it, or say --output")
        return known
    if threads is not None:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    model, ask = few_shot_source(run) if run.row == SOURCE else trained(run)
    minutes = (time.perf_counter() - started) / 60
    found: dict[str, Any] = {}
    for name in run.tasks:
        task = get_task(name, data=run.data)
        asked = ask(task, task.test(run.num_problems, seed=run.question_seed))
        found[name] = asked.as_dict() | {"correct": [int(verdict.correct) for verdict in asked.verdicts]}
    figures = {
        "row": run.row,
        "seed": run.seed,
        "told": told,
        "tasks": found,
        "parameters": 0 if run.row == SOURCE else model.num_parameters(),
        "minutes": minutes,
        "machine": machine(),
    }
    write_text(run.done, json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(run.work, ignore_errors=True)  # checkpoints
    return figures


def trained(run: Run) -> tuple[Any, Ask]:
    """A pair or a generator alone after the recipe's training, and how it is asked."""
    settings = load_settings(run.recipe, [*run.changes, f"training.seed={run.seed}", "training.resume=auto"])
    pair = build_model(settings.model, seed=run.seed)
    tokenizer = with_template(pair.source.tokenizer, settings.data.template)
    data = load_data(settings.data, tokenizer, vocab_size=pair.config.vocab_size)
    model: Any = pair
    if run.row.startswith(ALONE):
        torch.manual_seed(run.seed)
        config = pair.config
        model = GeneratorAlone.from_config(
            config.generator, vocab_size=config.vocab_size, generation_config=pair.generation_config
        )
    fit(model, data, settings.training.model_copy(update={"output_dir": run.work}), tokenizer=tokenizer)
    return model, partial(evaluate, model.eval(), tokenizer=tokenizer, max_new_tokens=run.max_new_tokens, label=run.row)


def few_shot_source(run: Run) -> tuple[Source, Ask]:
    """The frozen source, asked with solved training examples before each question."""
    settings = load_settings(run.recipe, run.changes)
    source = load_source(settings.model)
    solved = get_task(str(settings.data.task), data=settings.data.train_file)

    def ask(task: Task, problems: list[Problem]) -> Evaluation:
        shots = task.num_shots or NUM_SHOTS
        prompts = [solved.few_shot_prompt(problem, shots, seed=run.seed) for problem in problems]
        kinds = [problem.kind for problem in problems]
        return judge(task, problems, write_prompted(source, prompts, kinds=kinds, max_new_tokens=run.max_new_tokens))

    return source, ask


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out what is missing, print and publish."""
    given, runs = runs_of(arguments)
    started = time.perf_counter()
    threads = max(1, torch.get_num_threads() // given.jobs)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        done = pool.map(partial(carry_out, threads=threads), runs)
        figures = list(tqdm(done, total=len(runs), desc="runs", unit=" runs"))
    command = f"python -m benchmarks.halves {shlex.join(word for word in given.typed if word != '--quick')}"
    tasks = {name: rows_of(figures, name) for name in runs[0].tasks}
    head = ["", "exact match", "single seeds", "more than the pair", "form", "trained"]
    measured = "\n\n".join(
        f"{name}, {rows[0]['exact_match']['n']} questions\n\n{table(head, cells(rows))}" for name, rows in tasks.items()
    )
    publish(
        "evidence", given, command=command, started=started, measured=measured, block=f"halves-{given.name}",
        results={"seed": given.seeds[0], "seeds": given.seeds, "tasks": tasks, "runs": figures},
    )  # fmt: skip


def runs_of(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[Run]]:
    """What was asked for on the command line."""
    options = parser("halves", __doc__)
    options.add_argument("recipe", type=Path)
    options.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="of the recipe, for every row")
    options.add_argument("--name", help="of the folder and of the block in docs/evidence.md (default: the recipe's)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--tasks", nargs="+", help="whose questions are asked (default: the recipe's task)")
    options.add_argument("--data", help="file of the questions")
    options.add_argument("--num", type=int, help="questions of each task (default: 200, or all of the file's)")
    options.add_argument("--question-seed", type=int, default=7)
    options.add_argument("--max-new-tokens", type=int, default=160)
    options.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="'NAME: KEY=VALUE …'",
        help="a further row; of the generator alone if NAME begins so",
    )
    options.add_argument("--jobs", type=int, default=1, help="runs at once")
    typed = sys.argv[1:] if arguments is None else list(arguments)
    given = options.parse_intermixed_args(typed)
    given.typed = typed
    given.name = given.name or given.recipe.stem
    folder = folder_of(given) / "runs" / "halves" / given.name
    rows: dict[str, tuple[str, ...]] = {PAIR: (), ALONE: (), SOURCE: ()}
    for variant in given.also:
        name, _, changes = variant.partition(": ")
        rows[name] = tuple(changes.split(" "))
    if given.quick:
        given.changes += ["data.num_examples=16", "training.max_steps=2", "training.eval_steps=2"]
        given.seeds, given.num = given.seeds[:1], 4
    task = load_settings(given.recipe, given.changes).data.task
    runs = [
        Run(
            row,
            seed,
            given.recipe,
            (*given.changes, *rows[row]),
            tuple(given.tasks or [task]),
            given.data,
            given.num or (None if given.data else 200),
            given.question_seed,
            given.max_new_tokens,
            folder,
        )
        for seed in given.seeds
        for row in rows
        if row != SOURCE or seed == given.seeds[0]
    ]
    return given, runs


def rows_of(figures: Sequence[Mapping[str, Any]], task: str) -> list[dict[str, Any]]:
    """A row of figures each, means over seeds; differences from the pair on the same questions."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for one in figures:
        asked = one["tasks"][task] | {"seed": one["seed"], "parameters": one["parameters"]}
        by_row.setdefault(one["row"], []).append(asked)
    rows = []
    for row, runs in by_row.items():
        told = averaged(runs) | {
            "row": row,
            "form": fmean(one["form"] for one in runs),
            "parameters": runs[0]["parameters"],
        }
        if row != PAIR and (more := more_than(by_row[PAIR], runs)):
            told["more"] = more.as_dict()
        rows.append(told)
    return rows


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The same for the table."""
    return [
        [
            row["row"],
            str(share(row["exact_match"], decimals=0)),
            ", ".join(f"{100 * value:.0f}" for value in row["seeds"].values()),
            str(difference(row.get("more"))),
            f"{row['form']:.1%}",
            f"{row['parameters']:,}",
        ]
        for row in rows
    ]


if __name__ == "__main__":
    main()
