"""The modules that are served, by name: all on one source, which is one of them itself."""

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from transformers import PreTrainedTokenizerBase

from llm_modules.errors import UserError
from llm_modules.loading import load_together, load_trained, source_of
from llm_modules.modeling import CombinedModel
from llm_modules.serving.speakers import PairSpeaker, SourceSpeaker, Speaker
from llm_modules.shared_reading import SharedReading
from llm_modules.source import Source
from llm_modules.speakers import SOURCE, short_names

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class UnknownModuleError(UserError):
    """No module of that name is loaded."""


@dataclass(frozen=True, eq=False)
class Module:
    """Something that answers.

    Args:
        name: What requests call it.
        speaker: What writes.
        tokenizer: Its chat template is the one the module was trained in.
        parent: The module it reads through, `"source"` for a pair.
        model: The pair, where it is one.
        created: Unix time of its loading, in seconds.
    """

    name: str
    speaker: Speaker
    tokenizer: PreTrainedTokenizerBase
    parent: str | None = None
    model: CombinedModel | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        return {self.tokenizer.eos_token_id}


class Modules:
    """All that is served; loading and unloading may happen in any thread.

    Args:
        source: What all pairs read through.
        max_shared_tokens: Tokens of late prompts of which is kept what the source said.

    Raises:
        UserError: If the source cannot be talked to.
    """

    def __init__(self, source: Source, *, max_shared_tokens: int):
        if source.tokenizer is None:
            raise UserError(
                f"the source {source.source_id} has no tokenizer, so nothing can be asked; save one with it"
            )
        self.source = source
        self.shared = SharedReading(source, max_tokens=max_shared_tokens)
        self._loading = threading.Lock()
        self._known = {SOURCE: Module(SOURCE, SourceSpeaker(self.shared), source.tokenizer)}

    @classmethod
    def open(cls, models: Sequence[str], *, max_shared_tokens: int) -> Self:
        """Load models given as `FOLDER` or `NAME=FOLDER`; the first pair brings the source.

        Raises:
            UserError: If a folder holds no model, a pair needs another source, or names are taken twice.
        """
        named = _named(models)
        for name, folder in named:
            _check_name(name, folder, taken=[SOURCE, *(other for other, path in named if path != folder)])
        loaded = list(load_together(folder for _, folder in named))
        source = source_of(model for model, _ in loaded)
        if source is None:
            raise UserError(
                f"none of {', '.join(models)} is a pair, so there is no source to serve; give a trained pair"
            )
        modules = cls(source, max_shared_tokens=max_shared_tokens)
        for (name, _), (model, tokenizer) in zip(named, loaded, strict=True):
            modules._add(name, model, tokenizer)
        return modules

    def __iter__(self):
        return iter(self._known.values())  # which is never changed, only replaced

    def get(self, name: str) -> Module:
        """The module of that name.

        Raises:
            UnknownModuleError: If there is none.
        """
        module = self._known.get(name)
        if module is None:
            raise UnknownModuleError(f"model={name!r} is not loaded; choose one of {', '.join(self._known)}")
        return module

    def load(self, folder: Path, name: str | None = None) -> Module:
        """Load one more module.

        Raises:
            UserError: If the folder holds no model, it needs another source, or its name is taken.
        """
        name = name or short_names([folder])[0]
        with self._loading:
            _check_name(name, folder, taken=list(self._known))
            return self._add(name, *load_trained(folder, source=self.source))

    def unload(self, name: str) -> None:
        """Forget a module; answers that it is writing are finished.

        Raises:
            UserError: For the source.
            UnknownModuleError: If there is none of that name.
        """
        if name == SOURCE:
            raise UserError("the source serves all modules and cannot be unloaded; unload a module, or stop the server")
        with self._loading:
            self.get(name)
            self._known = {other: module for other, module in self._known.items() if other != name}

    def _add(self, name: str, model, tokenizer: PreTrainedTokenizerBase) -> Module:
        if not isinstance(model, CombinedModel):
            alone = Source.of(model)  # a language model of its own; what it reads is shared with nobody
            shared = SharedReading(alone, max_tokens=self.shared.max_tokens)
            module = Module(name, SourceSpeaker(shared), tokenizer)
        elif model.config.visibility == "bidirectional":
            raise UserError(
                f"{name} has visibility='bidirectional', which reads all anew for each token and cannot be served; "
                "serve a pair with visibility 'prompt' or 'causal'"
            )
        else:
            module = Module(name, PairSpeaker(model, self.shared), tokenizer, parent=SOURCE, model=model)
        self._known = {**self._known, name: module}
        return module


def _named(models: Sequence[str]) -> list[tuple[str, Path]]:
    """Names as given, or as a chat would call them beside one another."""
    given = [model.partition("=") for model in models]
    split = [(name, Path(folder)) if sep and NAME.fullmatch(name) else (None, Path(model))
             for model, (name, sep, folder) in zip(models, given, strict=True)]  # fmt: skip
    short = iter(short_names([folder for name, folder in split if name is None]))
    return [(next(short) if name is None else name, folder) for name, folder in split]


def _check_name(name: str, folder: Path, *, taken: Sequence[str]) -> None:
    if not NAME.fullmatch(name):
        raise UserError(
            f"module name {name!r} must be letters, digits, '.', '_' and '-', at most 64; choose one, as facts={folder}"
        )
    if name in taken:
        raise UserError(f"module name {name!r} is taken; choose another, as other={folder}")
