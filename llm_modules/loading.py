"""Load whatever `llm-modules train` left in a folder, with the tokenizer it was trained with."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from llm_modules.configuration import CombinedConfig
from llm_modules.errors import UserError
from llm_modules.modeling import CombinedModel
from llm_modules.source import Source


def load_trained(folder: str | Path, *, source: Source | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """A pair, or a language model of any other kind (a generator trained alone), ready to answer, and its tokenizer.

    Args:
        folder: What `llm-modules train` wrote.
        source: For a pair, the source that others hold already; it must be the one the pair was trained with.

    Raises:
        UserError: If the folder holds no usable model or no tokenizer, or a pair on another source.
    """
    if _holds_another_kind(Path(folder)):
        return load_causal_lm(folder)
    model = CombinedModel.from_pretrained(folder, source=source).eval()
    tokenizer = model.tokenizer or model.source.tokenizer
    if tokenizer is None:
        raise UserError(f"{folder} holds no tokenizer; save the model again with one")
    return model, tokenizer


def load_together(folders: Iterable[str | Path]) -> Iterator[tuple[Any, PreTrainedTokenizerBase]]:
    """Trained models one after another, as [`load_trained`]: the first pair with its source, all after it on that one.

    Raises:
        UserError: As it does; a pair on another source is refused.
    """
    source: Source | None = None
    for folder in folders:
        model, tokenizer = load_trained(folder, source=source)
        source = source_of([model]) or source
        yield model, tokenizer


def source_of(models: Iterable[Any]) -> Source | None:
    """The source of the first pair among some models."""
    return next((model.source for model in models if isinstance(model, CombinedModel)), None)


def to_accelerator_(model: Any) -> None:
    """Move a model to this process's accelerator, if there is one."""
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())


def load_causal_lm(name: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal language model of transformers in fp32, and its own tokenizer, from a folder or the hub.

    Raises:
        UserError: If there is none, or it cannot be reached.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{str(name)!r} could not be loaded as a language model with a tokenizer ({error}); give a folder that "
            "holds both, or a hub id where there is a network"
        ) from error
    return model.eval(), tokenizer


def _holds_another_kind(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    try:
        return not isinstance(AutoConfig.from_pretrained(folder, local_files_only=True), CombinedConfig)
    except (ValueError, OSError, KeyError, TypeError):
        return False  # CombinedModel.from_pretrained says what is wrong
