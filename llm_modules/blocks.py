"""The blocks of a decoder, whatever its architecture: found, and the first of them copied."""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from llm_modules.errors import UserError


def blocks_of(body: nn.Module) -> list[nn.Module]:
    """The decoder's blocks, in their order."""
    num_blocks = body.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    return list(next(m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == num_blocks))


def shortened(config: PreTrainedConfig, num_blocks: int) -> PreTrainedConfig:
    """Configuration of a decoder with the first blocks only, and no mark of where they came from.

    Raises:
        UserError: If there are not so many.
    """
    config = config.get_text_config()
    if not 1 <= num_blocks <= config.num_hidden_layers:
        raise UserError(
            f"first_blocks_of_source={num_blocks} must be 1 to {config.num_hidden_layers}, the blocks of the source"
        )
    per_block = {
        name: value[:num_blocks]
        for name, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == config.num_hidden_layers
    }
    if hasattr(config, "attention_types"):  # GPT-Neo says it as repetitions
        per_block["attention_types"] = [[config.attention_layers[:num_blocks], 1]]
    layers = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    fields = config.to_dict() | per_block | {layers: num_blocks, "dtype": "float32"}
    for origin in ("_name_or_path", "architectures", "transformers_version"):
        fields.pop(origin, None)
    return type(config).from_dict(fields)


def first_blocks(body: PreTrainedModel, num_blocks: int) -> PreTrainedModel:
    """A decoder that is a trainable fp32 copy of another's first blocks, with its last norm.

    Raises:
        UserError: If there are not so many, or what is left is no decoder that transformers builds.
    """
    model = AutoModel.from_config(shortened(body.config, num_blocks), dtype=torch.float32)
    held = body.state_dict()
    try:
        model.load_state_dict({name: held[name] for name in model.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"the first blocks of a {type(body).__name__} do not make a {type(model).__name__} ({error}); give the "
            "generator as a folder, a hub id or a configuration"
        ) from error
    return model
