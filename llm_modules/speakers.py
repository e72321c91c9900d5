"""Those who answer in a chat: modules that share one source, and the source itself, each by a short name."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llm_modules.data.templates import with_template
from llm_modules.errors import UserError
from llm_modules.loading import load_together, source_of

SOURCE = "source"


@dataclass(frozen=True)
class Speaker:
    """One that answers.

    Args:
        name: What a user calls it.
        model: A pair with its source, or a causal language model.
        tokenizer: With the chat template it answers in.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase


def load_speakers(folders: Sequence[Path], *, echo: Callable[[str], object]) -> dict[str, Speaker]:
    """Load trained models, the first pair with its source and all others on that one, which itself comes last.

    Args:
        folders: One or more.
        echo: Is told what is being loaded.

    Returns:
        By name, in the order given.

    Raises:
        UserError: If one cannot be loaded, reads another source than those before it, or is given twice.
    """
    names = short_names(folders)
    found: dict[str, Speaker] = {}
    loading = load_together(folders)
    for name, folder in zip(names, folders, strict=True):
        echo(f"loading {folder}")
        try:
            model, tokenizer = next(loading)
        except UserError as error:
            if len(folders) == 1:
                raise
            raise UserError(f"{folder}: {error}") from error
        found[name] = Speaker(name, model, tokenizer)
    source = source_of(speaker.model for speaker in found.values())
    if source is not None and source.model is not None and source.tokenizer is not None:
        own = source.tokenizer if source.tokenizer.chat_template else with_template(source.tokenizer, "plain")
        found[SOURCE] = Speaker(SOURCE, source.model, own)
    return found


def short_names(folders: Sequence[Path]) -> list[str]:
    """The end of each path that no other shares, without a last `model`: `runs/facts/model` is `facts`.

    Where there is no such end, the path as it was given; the whole one, if that is somebody else's name.

    Raises:
        UserError: If a folder is given twice.
    """
    paths = [folder.absolute() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is given twice; give each model once")
    parts = [path.parts[:-1] if path.name == "model" else path.parts for path in paths]

    def name(mine: tuple[str, ...], folder: Path) -> str:
        for length in range(1, len(mine)):
            ending = mine[-length:]
            if ending != (SOURCE,) and sum(other[-length:] == ending for other in parts) == 1:
                return "/".join(ending)
        return str(folder)

    names = [name(mine, folder) for mine, folder in zip(parts, folders, strict=True)]
    taken = Counter([SOURCE, *names])
    return [name if taken[name] == 1 else str(path) for name, path in zip(names, paths, strict=True)]
