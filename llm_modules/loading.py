"""Load whatever `llm-modules train` left in a folder, with its tokenizer, where it computes fastest."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from llm_modules.checksums import verify
from llm_modules.configuration import CombinedConfig
from llm_modules.errors import UserError
from llm_modules.machine import best_device
from llm_modules.modeling import CombinedModel
from llm_modules.source import Source
from llm_modules.source_files import stored_config


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
    model = CombinedModel.from_pretrained(folder, source=source).eval().to(best_device())
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


def load_causal_lm(name: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal language model of transformers in fp32, and its own tokenizer, from a folder or the hub.

    Raises:
        UserError: If there is none, or it cannot be reached.
    """
    verify(Path(name))
    try:
        safely = {"trust_remote_code": False}
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **safely)
        tokenizer = AutoTokenizer.from_pretrained(name, **safely)
    except Exception as error:  # a damaged file fails in as many ways as there are damages
        raise UserError(
            f"{str(name)!r} could not be loaded as a language model with a tokenizer ({error}); give a folder that "
            "holds both, or a hub id where there is a network"
        ) from error
    return model.eval().to(best_device()), tokenizer


def _holds_another_kind(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    try:
        return not isinstance(stored_config(folder), CombinedConfig)
    except UserError:
        return False  # CombinedModel.from_pretrained says what is wrong
