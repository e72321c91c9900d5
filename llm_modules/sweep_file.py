"""What a sweep can be told: its YAML file, checked in full, and the runs that it comes to (docs/sweep.md)."""

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from llm_modules.errors import UserError
from llm_modules.settings import (
    AtLeastOne,
    Positive,
    Section,
    Settings,
    checked,
    parse_override,
    read_tree,
    set_key_,
)
from llm_modules.tasks import check_name

BASE = "base"
OWN_KEYS = {
    "training.output_dir": "every run has a folder of its own",
    "training.seed": "give `seeds`",
    "training.resume": "a sweep always goes on where it was stopped",
}
"""Settings that a sweep decides itself, with what to do instead."""
SLUG_LENGTH = 60

Values = Annotated[list[Any], Field(min_length=1)]


class Judging(Section):
    """By which questions every run is judged: the same ones for all."""

    task: str | None = Field(None, description="Task; null is the one that the base trains on.")
    data: str | None = Field(None, description="File of held-out problems, for a task that reads one.")
    verifier: str | None = Field(None, description="For the task `jsonl`: exact, numeric, regex or choice.")
    num_problems: AtLeastOne | None = Field(None, description="Questions; null is all of `data`, else 200.")
    seed: int = Field(0, description="Seed of the questions.")
    max_new_tokens: AtLeastOne = Field(160, description="Most tokens of an answer.")

    @model_validator(mode="after")
    def _task_is_known(self) -> "Judging":
        if self.task is not None:
            check_name(self.task)
        return self


class SweepFile(Section):
    """All of a sweep."""

    base: str | dict[str, Any] = Field(description="Recipe that every point starts from, or its sections themselves.")
    common: list[str] = Field(
        default_factory=list, alias="set", description="`section.key=value` for every point, the base too."
    )
    seeds: list[int] = Field(default=[0], min_length=1, description="Each point is trained once with each.")
    factors: dict[str, Values] = Field(
        default_factory=dict, description="Key to values: a point for each, which differs from the base in it alone."
    )
    grid: dict[str, Values] = Field(
        default_factory=dict, description="Key to values: a point for every combination of them."
    )
    points: list[dict[str, Any]] = Field(
        default_factory=list, alias="list", description="A point each: any keys with their values, and maybe a `name`."
    )
    evaluation: Judging = Field(default_factory=Judging, description="By what the runs are judged.")
    keep_models: bool = Field(False, description="Keep the trained models; else only their figures stay.")
    max_run_s: Positive | None = Field(None, description="A run that takes longer is stopped and counts as failed.")

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {seeds} names one twice; the second run would be the first again")
        return seeds


@dataclass(frozen=True)
class Point:
    """One setting of what is swept.

    Args:
        name: For the reader; unique.
        changes: Dotted keys and their values, where it differs from the base.
    """

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A point trained with one seed.

    Args:
        point: Which.
        seed: Of weights, dropout and the order of examples.
        settings: All of the training run, but for its folder.
    """

    point: Point
    seed: int
    settings: Settings

    def name(self, judged_by: str) -> str:
        """Name of its files: to be read, and different for every other run.

        Args:
            judged_by: What tells one set of questions from another.
        """
        fields = self.settings.model_dump(mode="json", exclude_defaults=True)  # a new key leaves finished runs theirs
        told = json.dumps([fields, judged_by], sort_keys=True)
        digest = hashlib.blake2b(told.encode(), digest_size=6).hexdigest()
        return f"{slug(self.point.name)}-seed-{self.seed}-{digest}"


@dataclass(frozen=True)
class Sweep:
    """A sweep file, worked out.

    Args:
        path: Of the file.
        file: What it says.
        base: Settings of the base.
        points: The base first.
        runs: Each point with each seed; all points with the first seed come first.
        same_as_base: Names of points of `factors` and `grid` that are the base.
    """

    path: Path
    file: SweepFile
    base: Settings
    points: Sequence[Point]
    runs: Sequence[Run]
    same_as_base: Sequence[str]

    @property
    def judging(self) -> Judging:
        """By what the runs are judged, the task named."""
        task = self.file.evaluation.task or self.base.data.task
        return self.file.evaluation.model_copy(update={"task": task})


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and work out what it comes to.

    Args:
        path: Of the file.
        overrides: `section.key=value` of a recipe, for every point, or of the sweep file (`evaluation.data=…`).

    Raises:
        MissingFileError: The file or its base is not there.
        UserError: A key is unknown, a value is not allowed, or two points are the same.
    """
    tree = read_tree(path, needs="at least base, and one of factors, grid and list", model=SweepFile)
    common = []
    for override in overrides:
        key, value = parse_override(override)
        if key.partition(".")[0] in Settings.model_fields:
            common.append(override)
        else:
            set_key_(tree, key, value)
    file = checked(tree, model=SweepFile, origin=str(path))
    file = file.model_copy(update={"common": [*file.common, *common]})
    if not (file.factors or file.grid or file.points):
        raise UserError(f"{path} sweeps nothing; give it factors, grid or list")
    base = _base_tree(file)
    for key, value in map(parse_override, file.common):
        _refuse_own(key, str(path))
        set_key_(base, key, value)
    settings = _settings(base, {}, seed=file.seeds[0], origin=f"{path}, base")
    points, same = _points(file, base, origin=str(path))
    runs = [
        Run(point, seed, _settings(base, point.changes, seed=seed, origin=f"{path}, point {point.name!r}"))
        for seed in file.seeds
        for point in points
    ]
    sweep = Sweep(Path(path), file, settings, points, runs, same)
    if sweep.judging.task is None:
        raise UserError(f"{path}: the base names no task, so nothing says how to judge its runs; add evaluation.task")
    return sweep


def slug(name: str) -> str:
    """A name as part of a file's: small letters, figures and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:SLUG_LENGTH].rstrip("-") or "point"


def name_of(changes: Mapping[str, Any]) -> str:
    """What a point without a name of its own is called: its keys, without their section, and values."""
    shown = (value if isinstance(value, str) else json.dumps(value, default=str) for value in changes.values())
    return ", ".join(f"{key.partition('.')[2]}={value}" for key, value in zip(changes, shown, strict=True))


def _base_tree(file: SweepFile) -> dict[str, Any]:
    if isinstance(file.base, dict):
        return copy.deepcopy(file.base)
    return read_tree(file.base, needs="the section data with task or train_file", model=Settings)


def _settings(base: Mapping[str, Any], changes: Mapping[str, Any], *, seed: int, origin: str) -> Settings:
    tree = copy.deepcopy(dict(base))
    try:
        for key, value in changes.items():
            set_key_(tree, key, copy.deepcopy(value))
        set_key_(tree, "training.seed", seed)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    tree["training"] |= {"resume": "auto"}
    tree["training"].pop("output_dir", None)
    settings = checked(tree, model=Settings, origin=origin)
    if "features" in settings.training.model_fields_set or settings.model.source is None:
        return settings
    tree["training"]["features"] = "auto"  # points that read alike then read once
    return checked(tree, model=Settings, origin=origin)


def _points(file: SweepFile, base: Mapping[str, Any], *, origin: str) -> tuple[list[Point], list[str]]:
    """The points, the base first, and the names of those of factors and grid that are the base."""
    found = {_told(base, Point(BASE, {}), file, origin): Point(BASE, {})}
    same = []
    for point, may_be_base in _all_points(file, origin=origin):
        told = _told(base, point, file, origin)
        other = found.setdefault(told, point)
        if other.name == BASE and may_be_base:
            same.append(point.name)
        elif other is not point:
            raise UserError(f"{origin}: the points {other.name!r} and {point.name!r} are the same; leave one out")
    names = [point.name for point in found.values()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{origin}: two different points are called {twice!r}; put them into `list`, with names")
    return list(found.values()), same


def _all_points(file: SweepFile, *, origin: str) -> Iterator[tuple[Point, bool]]:
    """Each point, and whether it may be the base: a list of values of a factor or of a grid holds its own as well."""
    listed: list[dict[str, Any]] = [{key: value} for key, values in file.factors.items() for value in values]
    if file.grid:
        listed += [dict(zip(file.grid, values, strict=True)) for values in itertools.product(*file.grid.values())]
    for one in [*listed, *file.points]:
        changes = {key: value for key, value in one.items() if key != "name"}
        for key in changes:
            _refuse_own(key, origin)
            if "." not in key:
                raise UserError(f"{origin}: {key!r} is not section.key, such as model.taps")
        yield Point(str(one.get("name", name_of(changes))), changes), one not in file.points


def _told(base: Mapping[str, Any], point: Point, file: SweepFile, origin: str) -> str:
    settings = _settings(base, point.changes, seed=file.seeds[0], origin=f"{origin}, point {point.name!r}")
    return settings.model_dump_json()


def _refuse_own(key: str, origin: str) -> None:
    if key in OWN_KEYS:
        raise UserError(f"{origin}: {key} cannot be set in a sweep, {OWN_KEYS[key]}; leave it out")
