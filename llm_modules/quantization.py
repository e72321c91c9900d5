"""A source held in fewer bits, by bitsandbytes through transformers: less memory for a body that never trains."""

import importlib.util
import logging
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig

from llm_modules.errors import UserError

Quantization: TypeAlias = Literal["8bit", "4bit"]

BYTES_PER_WEIGHT = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}  # 4 bits: a scale of 4 bytes for every 64 weights


def loading_arguments(quantization: Quantization | None, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers' `from_pretrained` is told, so that the body's matrices are held so; the tables stay whole.

    Args:
        quantization: `"8bit"` (LLM.int8) or `"4bit"` (NF4); `None` for neither.
        dtype: What the source computes in.

    Raises:
        UserError: If bitsandbytes is not installed, or the name is neither.
    """
    if quantization is None:
        return {}
    if quantization not in BYTES_PER_WEIGHT:
        raise UserError(
            f"quantization={quantization!r} is not known; choose one of {', '.join(BYTES_PER_WEIGHT)}, or leave it out"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"a source in {quantization} needs bitsandbytes; install it (pip install 'llm-modules[quantization]') or "
            "leave source_quantization out"
        )
    # it says so at every product: that 8-bit products round their inputs to float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantization == "8bit"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    )
    return {"quantization_config": config}


def keep_packing_(model: nn.Module) -> None:
    """Keep 4-bit matrices as they were loaded.

    At its first product on a CPU with AVX-512-BF16 bitsandbytes would lay them out anew: the source would not stay what
    it was, its states would be others than elsewhere, reading took twice as long (2.2 s for 1.1, 1,024 tokens of the
    default source), and a matrix whose rows are not a multiple of 32 is an AssertionError.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment] # a plain attribute


def quantization_of(config: PreTrainedConfig) -> Quantization | None:
    """How a loaded model's weights are held."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    fields = found if isinstance(found, dict) else found.to_dict()
    return "4bit" if fields.get("load_in_4bit") else "8bit" if fields.get("load_in_8bit") else None
