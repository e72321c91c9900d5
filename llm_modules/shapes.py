"""Shapes of models without their weights: what `plan` counts, also where no hub is reachable."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm_modules.baselines import GeneratorAlone
from llm_modules.blocks import shortened
from llm_modules.configuration import CombinedConfig
from llm_modules.errors import UserError
from llm_modules.generator import load_generator, num_first_blocks
from llm_modules.modeling import CombinedModel
from llm_modules.settings import ModelSettings
from llm_modules.source_files import FILES_BESIDE_WEIGHTS, resolve_folder, stored_config, stored_tokenizer

# The pair of arXiv 2502.08213: fields that differ from their class's defaults, as their repositories have them.
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-1.5B": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "dtype": "bfloat16",
    },
    "EleutherAI/gpt-neo-125m": {
        "model_type": "gpt_neo",
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_layers": 12,
        "attention_types": [[["global", "local"], 6]],
        "num_heads": 12,
        "window_size": 256,
        "max_position_embeddings": 2048,
    },
}


@dataclass(frozen=True)
class Skeleton:
    """The models of some settings on the meta device: every shape and no number.

    Args:
        model: What trains: a pair, whose source is not attached, or a generator alone.
        source: The frozen source; `None` for a generator alone.
    """

    model: CombinedModel | GeneratorAlone
    source: PreTrainedModel | None


def shape_of(name: str, *, revision: str | None = None, report: Callable[[str], object] = print) -> PreTrainedConfig:
    """Configuration of a built-in source, folder, GGUF file or hub id, or of a model whose shape is known here.

    Args:
        name: Of a source or generator.
        revision: Branch, tag or commit on the hub.
        report: Is told where the known shape stands in for a repository that cannot be reached.

    Raises:
        UserError: If it is neither to be found nor known.
    """
    try:
        folder = resolve_folder(name, revision, files=FILES_BESIDE_WEIGHTS)
    except UserError as error:
        if name not in KNOWN_SHAPES:
            raise UserError(
                f"the shape of {name!r} cannot be read ({error}); offline, give a folder with its config.json, or one "
                f"of the models whose shape is known: {', '.join(KNOWN_SHAPES)}"
            ) from error
        report(f"{name} cannot be fetched here: planned with its known shape")
        return known_shape(name)
    return stored_config(folder)


def known_shape(name: str, **changes: Any) -> PreTrainedConfig:
    """Configuration of one of `KNOWN_SHAPES`, some fields changed."""
    return AutoConfig.for_model(**(KNOWN_SHAPES[name] | changes))


def tokenizer_of(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase | None:
    """The tokenizer stored beside a model, or `None` where it cannot be had."""
    try:
        folder = resolve_folder(name, revision, files=FILES_BESIDE_WEIGHTS)
        return stored_tokenizer(folder)
    except UserError:
        return None


OF_SOURCE = frozenset(
    {"pretrained", "source", "source_revision", "source_fingerprint", "source_dtype", "source_quantization"}
)
"""Model settings that say which weights are there and how they are held; a shape does not tell them."""


def choices_of(settings: ModelSettings) -> dict[str, Any]:
    """The choices that join source and generator, as [`CombinedConfig`] takes them."""
    return settings.model_dump(exclude={*OF_SOURCE, "generator"})


def skeleton(settings: ModelSettings, *, report: Callable[[str], object] = print) -> Skeleton:
    """What the settings would train, and its source, built without reading or drawing a single weight.

    Raises:
        UserError: For a model whose shape cannot be had, and for choices that contradict each other.
    """
    if settings.source is None:
        with torch.device("meta"):
            shape = _generator_shape(settings, None, report)
            return Skeleton(GeneratorAlone(AutoModelForCausalLM.from_config(shape)), None)
    config = _pair_shape(settings, report)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="visibility='bidirectional'")  # nothing is trained here
        return Skeleton(CombinedModel(config), AutoModelForCausalLM.from_config(copy.deepcopy(config.source)))


def _pair_shape(settings: ModelSettings, report: Callable[[str], object]) -> CombinedConfig:
    if settings.pretrained is not None:
        config = shape_of(settings.pretrained, report=report)
        if not isinstance(config, CombinedConfig):
            raise UserError(
                f"model.pretrained={settings.pretrained!r} holds a {config.model_type} model, not a pair; give a "
                "folder that `llm-modules train` wrote"
            )
        return config
    source = shape_of(str(settings.source), revision=settings.source_revision, report=report)
    return CombinedConfig(source=source, generator=_generator_shape(settings, source, report), **choices_of(settings))


def _generator_shape(
    settings: ModelSettings, source: PreTrainedConfig | None, report: Callable[[str], object]
) -> PreTrainedConfig:
    if isinstance(settings.generator, str):
        return shape_of(settings.generator, report=report)
    if source is not None and (num_blocks := num_first_blocks(settings.generator)) is not None:
        return shortened(source, num_blocks)
    config, _ = load_generator(settings.generator)
    return config
