"""All of `llm-modules evaluate`: a trained model from its folder, asked, judged, and its figures told."""

import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_modules.data.overlap import refuse_trained_prompts
from llm_modules.data.templates import encode_prompt
from llm_modules.evaluation import Evaluation, evaluate, explain_nothing_right
from llm_modules.few_shot import few_shot
from llm_modules.loading import load_trained
from llm_modules.modeling import CombinedModel
from llm_modules.processes import agree, together
from llm_modules.tasks import Problem, Task


def examine(
    folder: Path,
    task: Task,
    problems: Sequence[Problem],
    *,
    seed: int,
    max_new_tokens: int,
    echo: Callable[[str], object],
) -> dict[str, Any]:
    """Ask a trained model, and beside it the source alone where the task wants that; several processes share the work.

    Args:
        folder: Of the model.
        task: Whose verifier judges.
        problems: What to ask.
        seed: Of the demonstrations that the source is shown.
        max_new_tokens: Most tokens of an answer.
        echo: Receives the lines for the reader.

    Returns:
        The figures, for JSON.

    Raises:
        UserError: If the folder holds no usable model, or the model was trained on some of the problems.
    """
    with together():
        asked = zlib.crc32(repr(problems).encode())
        agree({"model": folder, "task": task.name, "problems": asked, "seed": seed, "max_new_tokens": max_new_tokens})
        return _examine(folder, task, problems, seed=seed, max_new_tokens=max_new_tokens, echo=echo)


def _examine(
    folder: Path, task: Task, problems: Sequence[Problem], *, seed: int, max_new_tokens: int,
    echo: Callable[[str], object],
) -> dict[str, Any]:  # fmt: skip
    model, found = ask(folder, task, problems, max_new_tokens=max_new_tokens, echo=echo)
    figures = found.as_dict()
    if task.num_shots is not None and isinstance(model, CombinedModel):
        beside = few_shot(
            model.source, task, problems, num_examples=task.num_shots, seed=seed, max_new_tokens=max_new_tokens
        )
        echo(f"\nthe source alone, {task.num_shots} examples in its context")
        for line in _lines(beside):
            echo(line)
        figures["source_few_shot"] = beside.as_dict()
    return figures


def ask(
    folder: Path, task: Task, problems: Sequence[Problem], *, max_new_tokens: int, echo: Callable[[str], object]
) -> tuple[Any, Evaluation]:
    """The trained model of a folder, and what it scored; arguments and errors as for `examine`."""
    model, tokenizer = load_trained(folder)
    agree({"weights of the model": getattr(model.config, "weights_fingerprint", None)})
    refuse_trained_prompts(folder, [encode_prompt(problem.messages()[:1], tokenizer) for problem in problems])
    found = evaluate(model, task, problems, tokenizer, max_new_tokens=max_new_tokens, label=task.name)
    for line in _lines(found):
        echo(line)
    if trouble := explain_nothing_right(task, found):
        warnings.warn(trouble, stacklevel=3)
    return model, found


def _lines(found: Evaluation) -> list[str]:
    width = max(12, *(len(kind) for kind in found.by_kind))
    lines = [f"{kind:{width}} {score}" for kind, score in found.by_kind.items()]
    speed = f"{found.writing.tokens_per_s:.0f} tokens/s"
    lines.append(f"{'all':{width}} {found.exact}; form {found.form.value:.1%}; {speed}")
    fields = found.field_f1()
    if fields:
        lines.append(f"{'F1 of fields':{width}} " + ", ".join(f"{name} {value:.1%}" for name, value in fields.items()))
    return lines
