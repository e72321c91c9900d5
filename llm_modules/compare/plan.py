"""What a comparison was told, as a file: a row's own process reads it, and a changed one is refused."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from llm_modules.checksums import read_json, write_json
from llm_modules.compare.budget import Budget
from llm_modules.errors import UserError
from llm_modules.settings import Settings
from llm_modules.tasks import FILE_TASKS

FILE = "plan.json"
FULL: dict[str, Any] = {"budget": "300s", "rates": "3e-4,1e-3,3e-3", "num": 200, "limit_s": None}
QUICK: dict[str, Any] = {"budget": "60s", "rates": "7e-4,2e-3", "num": 50, "limit_s": 840.0}
"""What is meant where the command line says nothing; a quick comparison ends within 15 minutes, its report included."""
TEST_SEED = 1  # the seed of the demo's test; training data have seed 0 unless told otherwise


class Plan(BaseModel):
    """A comparison, apart from which rows it has.

    Attributes:
        settings: Model, data and training of the pair.
        budget: What each row's training may cost, as typed.
        rates: Learning rates tried for each row; the bridge's, the recipe's others keep their ratio to it.
        num: Test problems.
        test: File of the test problems, where the task reads one.
        verifier: How their answers are judged, where the configuration names no task.
        seeds: Training runs of each row.
        ask: Questions answered side by side; the paper's two if empty.
        max_new_tokens: Most tokens of an answer.
        limit_s: Rows that would end after so many seconds are left out; `None` for no limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: Settings
    budget: str
    rates: tuple[float, ...]
    num: int
    test: str | None
    verifier: str | None
    seeds: int
    ask: tuple[str, ...]
    max_new_tokens: int
    limit_s: float | None

    def check(self) -> None:
        """Refuse what cannot be compared, before anything is loaded.

        Raises:
            UserError: See the messages.
        """
        Budget.parse(self.budget)
        model, data = self.settings.model, self.settings.data
        if model.source is None or model.pretrained is not None:
            given = "model.source is null" if model.source is None else f"model.pretrained={model.pretrained}"
            raise UserError(f"{given}; compare trains new pairs: name model.source and leave model.pretrained out")
        if not self.rates or any(rate <= 0 for rate in self.rates) or len(set(self.rates)) < len(self.rates):
            raise UserError(f"--rates {', '.join(map(str, self.rates))}: give different rates above 0")
        if data.task in (None, *FILE_TASKS) and self.test is None:
            raise UserError("the configuration reads its problems from a file; give those to test on as --test FILE")
        if data.task is not None and data.task not in FILE_TASKS and self.test is not None:
            raise UserError(f"the task {data.task} makes its own test problems; leave --test out")
        if (data.task is None) != (self.verifier is not None):
            raise UserError(
                "the configuration names no task, so nothing says how answers are judged; give --verifier"
                if data.task is None
                else f"the task {data.task} has its own verifier; leave --verifier out"
            )

    def claim(self, folder: Path) -> None:
        """Write the plan into the folder, or make sure that the one there is the same.

        Raises:
            UserError: If another is there; the message says what differs. Or if the folder cannot be written.
        """
        file = folder / FILE
        if file.is_file():
            before, now = _flat(read_json(file)), _flat(json.loads(self._as_json()))
            changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            if changed:
                key = changed[0]
                more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
                raise UserError(
                    f"{folder} holds a comparison with {key}={before.get(key)}, now it is {now.get(key)}{more}; rows "
                    "of different settings do not compare: choose another --out, or remove it"
                )
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--out {folder} exists and holds no comparison; choose another")
        try:
            write_json(file, json.loads(self._as_json()))
        except OSError as error:
            raise UserError(f"--out {folder} cannot be written ({error.strerror}); choose another") from error

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """As `claim` wrote it."""
        return cls.model_validate(read_json(folder / FILE))

    def _as_json(self) -> str:
        # some settings may not be given beside others, not even as their defaults
        return self.model_dump_json(exclude_unset=True, indent=2)


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found
