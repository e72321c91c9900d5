"""The generator: a small decoder that takes the bridge's states in place of token embeddings."""

from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from llm_modules.blocks import first_blocks
from llm_modules.checksums import verify
from llm_modules.errors import UserError
from llm_modules.source import Source

FIRST_BLOCKS = "first_blocks_of_source"
GeneratorLike: TypeAlias = str | Path | dict[str, Any] | PreTrainedModel | PreTrainedConfig


def build_generator(config: PreTrainedConfig) -> PreTrainedModel:
    """A decoder with random weights and without a token table: it only ever sees states."""
    dtype = torch.get_default_dtype()  # fp32, or what `from_pretrained` was asked for; never the configuration's
    return without_tokens_(AutoModel.from_config(config, dtype=dtype))


def num_first_blocks(generator: GeneratorLike) -> int | None:
    """How many of the source's blocks a generator is to begin as; `None` for every other one.

    Raises:
        UserError: If it is said in another way than `{first_blocks_of_source: number}`.
    """
    if not isinstance(generator, dict) or FIRST_BLOCKS not in generator:
        return None
    number, others = generator[FIRST_BLOCKS], sorted(generator.keys() - {FIRST_BLOCKS})
    if others:
        raise UserError(
            f"generator has {FIRST_BLOCKS}={number}, whose shape is the source's, and {', '.join(others)}; give one or "
            f"the other, for example generator={{{FIRST_BLOCKS}: 4}}"
        )
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"{FIRST_BLOCKS}={number!r} is no number of blocks; give one, for example 4")
    return number


def load_generator(
    generator: GeneratorLike, *, source: Source | None = None
) -> tuple[PreTrainedConfig, PreTrainedModel | None]:
    """Configuration of a generator, and its pretrained body where weights are given.

    Args:
        generator: A configuration or a dict of its fields with `model_type` (random weights), a loaded model, or a hub
            id or folder (pretrained weights, loaded in fp32, which trains best), or
            `{"first_blocks_of_source": number}` (a trainable copy of so many blocks of the source).
        source: The pair's source, for its blocks.

    Raises:
        UserError: If it cannot be loaded.
    """
    if isinstance(generator, PreTrainedConfig):
        return generator, None
    if (num_blocks := num_first_blocks(generator)) is not None:
        if source is None or source.model is None:
            raise UserError(f"{FIRST_BLOCKS}={num_blocks} copies weights of a source; load one whole, beside it")
        body = first_blocks(source.model.base_model, num_blocks)
        return body.config, without_tokens_(body)
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
        verify(Path(generator))
        try:
            body, info = AutoModel.from_pretrained(
                generator, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, use_safetensors=True
            )
        except Exception as error:  # a damaged file fails in as many ways as there are damages
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
