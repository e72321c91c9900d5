"""The folder of a training run: whose it is, who writes into it, and which checkpoint it goes on from."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np
import yaml

from llm_modules.checksums import faults, is_sealed, read_json, write_json
from llm_modules.data.templates import Example
from llm_modules.errors import UserError
from llm_modules.files import HALF_WRITTEN, remove_half_written, write_text
from llm_modules.folders import alone_in
from llm_modules.settings import Settings, load_settings

SETTINGS, EXAMPLES, CHECKPOINTS, MODEL = "settings.yaml", "examples.json", "checkpoints", "model"
STATE = "trainer_state.json"
# a resumed run may have others: they say where, how often and how long, and nothing about an update
MAY_CHANGE = frozenset({
    "output_dir", "resume", "max_steps", "num_epochs", "eval_steps", "save_steps", "save_total_limit",
    "early_stopping_patience", "early_stopping_min_delta", "tensorboard", "sharding", "timeout_s",
})  # fmt: skip


@contextmanager
def claimed(settings: Settings) -> Iterator[None]:
    """The output folder of a run, for this process alone, before anything is computed.

    Raises:
        UserError: If it holds something else, or a run of other settings, or another process is at work in it, or it
            cannot be written.
    """
    folder = settings.training.output_dir
    _refuse_foreign(folder, resume=bool(settings.training.resume))
    with alone_in(folder, what="training"):
        _refuse_other_settings(folder, settings)
        remove_half_written(folder)
        remove_half_written(folder / CHECKPOINTS)
        write_text(folder / SETTINGS, as_yaml(settings))
        yield


def refuse_other_examples(folder: Path, digests: Mapping[str, str]) -> None:
    """Note which examples a run is trained on; one that goes on must have the same.

    Args:
        folder: Of the run.
        digests: `examples_digest` of its `training` and its `validation` examples.

    Raises:
        UserError: If it has others.
    """
    file = folder / EXAMPLES
    if file.is_file() and last_checkpoint(folder / CHECKPOINTS) is not None:
        before = read_json(file, otherwise="remove it if you know that the data are the same, and run the same again")
        changed = [name for name, digest in digests.items() if before.get(name) != digest]
        if changed:
            raise UserError(
                f"{folder} holds a run that began with other {' and '.join(changed)} examples; bring the data back, or "
                "choose another training.output_dir"
            )
    write_json(file, digests)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint; a folder of this name is complete, and others are being written."""
    complete = [state.parent for state in folder.glob(f"checkpoint-*/{STATE}")]
    return max(complete, key=_step, default=None)


def verify_checkpoint(checkpoint: Path) -> None:
    """Make sure that a checkpoint is what was saved.

    Raises:
        UserError: If it is changed or damaged; the message names one to go on from, if there is any.
    """
    found = faults(checkpoint) if is_sealed(checkpoint) else []
    if found:
        before = [state.parent for state in checkpoint.parent.glob(f"checkpoint-*/{STATE}")]
        whole = [other for other in before if _step(other) < _step(checkpoint) and not faults(other)]
        then = f"the run then goes on from {max(whole, key=_step).name}" if whole else "the run then begins anew"
        raise UserError(
            f"{checkpoint} is not what was saved: {'; '.join(found)}. It was changed or damaged: remove this "
            f"checkpoint and run the same again; {then}"
        )


def remove_older(newest: Path, *, keep: int, best: str | None) -> None:
    """Remove all but the last checkpoints, and the best; each loses its name before its first file.

    Args:
        newest: The checkpoint that was written just now.
        keep: How many to keep, the best among them.
        best: Name of the best, if there is one.
    """
    found = sorted((state.parent for state in newest.parent.glob(f"checkpoint-*/{STATE}")), key=_step)
    kept = {newest.name, best}
    for checkpoint in [one for one in reversed(found) if one.name not in kept][max(0, keep - len(kept - {None})) :]:
        away = checkpoint.with_name(f".{checkpoint.name}.old{HALF_WRITTEN}")
        shutil.rmtree(away, ignore_errors=True)
        checkpoint.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def as_yaml(settings: Settings) -> str:
    """All settings, defaults written out, as a file to train from again."""
    fields = settings.model_dump(mode="json")
    if settings.model.pretrained is not None or settings.model.source is None:
        fields["model"] = settings.model.model_dump(mode="json", exclude_unset=True)  # the others may not be given
    if fields["training"]["max_steps"] is not None:
        del fields["training"]["num_epochs"]  # its default, which counts for nothing then
    return yaml.safe_dump(fields, sort_keys=False)


def _refuse_foreign(folder: Path, *, resume: bool) -> None:
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"output_dir={folder} is a file, not a folder; choose another")
        return
    seen = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if seen and not (resume and any((folder / name).exists() for name in (SETTINGS, CHECKPOINTS))):
        raise UserError(
            f"output_dir={folder} exists and is not empty; choose another, remove it, or, if it holds a run, resume "
            "with training.resume=auto"
        )


def _refuse_other_settings(folder: Path, settings: Settings) -> None:
    """A run that has begun to train goes on as it began."""
    begun = last_checkpoint(folder / CHECKPOINTS) is not None or (folder / MODEL).exists()
    if not begun or not (folder / SETTINGS).is_file():
        return
    try:
        before = load_settings(folder / SETTINGS).model_dump(mode="json")
    except UserError as error:
        raise UserError(
            f"{error}; so it cannot be told whether the run there is this one: restore the file, or choose another "
            "training.output_dir"
        ) from None
    now = settings.model_dump(mode="json")
    for section, fields in now.items():
        for name, value in fields.items():
            was = before[section].get(name)
            if was != value and not (section == "training" and name in MAY_CHANGE):
                raise UserError(
                    f"{folder} holds a run with {section}.{name}={was}, now it is {value}; resume with the settings "
                    "that it began with, or choose another training.output_dir"
                )


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def examples_digest(examples: Sequence[Example]) -> str:
    """One word for examples in their order."""
    whole = blake2b(digest_size=16)
    for example in examples:
        for part in (example.prompt_ids, example.response_ids):
            whole.update(len(part).to_bytes(4) + np.asarray(part, dtype=">u4").tobytes())
    return whole.hexdigest()
