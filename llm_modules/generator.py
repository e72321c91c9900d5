"""The generator: a small decoder that takes the bridge's states in place of token embeddings."""

from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from llm_modules.errors import UserError

GeneratorLike: TypeAlias = str | Path | dict[str, Any] | PreTrainedModel | PreTrainedConfig


def build_generator(config: PreTrainedConfig) -> PreTrainedModel:
    """A decoder with random weights and without a token table: it only ever sees states."""
    dtype = torch.get_default_dtype()  # fp32, or what `from_pretrained` was asked for; never the configuration's
    return without_tokens_(AutoModel.from_config(config, dtype=dtype))


def load_generator(generator: GeneratorLike) -> tuple[PreTrainedConfig, PreTrainedModel | None]:
    """Configuration of a generator, and its pretrained body where weights are given.

    Args:
        generator: A configuration or a dict of its fields with `model_type` (random weights), a loaded model, or a hub
            id or folder (pretrained weights, loaded in fp32, which trains best).

    Raises:
        UserError: If it cannot be loaded.
    """
    if isinstance(generator, PreTrainedConfig):
        return generator, None
    if isinstance(generator, dict):
        if "model_type" not in generator:
            raise UserError(f"generator={generator} names no model_type; add one, for example model_type: gpt_neo")
        try:
            return AutoConfig.for_model(**generator), None
        except (ValueError, TypeError) as error:
            raise UserError(f"generator={generator} is no configuration that transformers knows: {error}") from error
    if isinstance(generator, PreTrainedModel):
        body = generator.base_model.float()  # what trains is fp32
    else:
        try:
            body, info = AutoModel.from_pretrained(generator, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"generator={str(generator)!r} could not be loaded ({error}); give a folder, a reachable hub id, or a "
                "configuration (random weights)"
            ) from error
        if info["missing_keys"]:  # transformers fills them with random numbers
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise UserError(f"generator={str(generator)!r} lacks weights ({missing}); fetch or save it again")
    return body.config, without_tokens_(body)


def without_tokens_(body: PreTrainedModel) -> PreTrainedModel:
    """Drop the token table: states enter through `inputs_embeds`, so it would be neither used nor trained."""
    body.set_input_embeddings(nn.Identity())
    return body


def position_limit(body: PreTrainedModel) -> int | None:
    """Most positions the generator can tell apart, if it has a table of them; `None` for rotary and the like."""
    tables = [module for module in body.modules() if isinstance(module, nn.Embedding)]
    limit = getattr(body.config, "max_position_embeddings", None)
    return limit if tables and limit is not None else None
