"""A generator of another width, so that size explains nothing."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from llm_modules.errors import UserError

WIDTHS = ("hidden_size", "n_embd", "d_model")
INNER_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")
MOST_TIMES = 64  # wider than that nobody asks for


def of_size(config: PreTrainedConfig, *, vocab_size: int, num_parameters: int) -> PreTrainedConfig:
    """The same architecture, layers and heads, its width changed until it has nearly so many parameters.

    The word table, once for both ends, counts, as it does in `GeneratorAlone`.

    Args:
        config: Of the generator.
        vocab_size: Words in the table.
        num_parameters: Wanted.

    Raises:
        UserError: If its width stands in no field known here.
    """
    fields = config.to_dict()
    # not the names that a configuration only maps to its own
    widths = [name for name in WIDTHS if name in fields]
    if not widths:
        raise UserError(f"the width of a {config.model_type} is named none of {', '.join(WIDTHS)}; leave this row out")
    width = fields[widths[0]]
    step = 2 * config.num_attention_heads  # rotary positions need heads of even width
    inner = [name for name in INNER_WIDTHS if fields.get(name)]

    def of_width(chosen: int) -> PreTrainedConfig:
        changed: dict[str, Any] = dict.fromkeys(widths, chosen)
        changed |= {name: max(1, round(fields[name] * chosen / width)) for name in inner}
        if fields.get("head_dim"):
            changed["head_dim"] = chosen // config.num_attention_heads
        return type(config)(**(fields | changed | {"vocab_size": vocab_size, "tie_word_embeddings": True}))

    def distance(chosen: int) -> int:
        return abs(_count(of_width(chosen)) - num_parameters)

    low, high = 1, max(2, MOST_TIMES * width // step)
    while high - low > 1:  # the number of parameters grows with the width
        middle = (low + high) // 2
        low, high = (middle, high) if _count(of_width(middle * step)) <= num_parameters else (low, middle)
    return of_width(min((low, high), key=lambda times: distance(times * step)) * step)


def _count(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        found: int = AutoModelForCausalLM.from_config(config).num_parameters()
    return found
