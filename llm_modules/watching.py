"""What the bridge reads while the pair writes: gates and attention, collected from outside."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_modules.attention import EnhancedCrossAttention
from llm_modules.data.templates import Example
from llm_modules.features import inputs_of
from llm_modules.modeling import CombinedModel


@dataclass(frozen=True)
class LayerReading:
    """What one bridge layer did for the last positions of one forward.

    Args:
        gates: `[batch, num_last, d_generator]` in (0, 1): how much of the layer's result was read.
        attention: `[batch, heads, num_last, source_len]`; a row sums to one, or is zero where nothing may be read.
    """

    gates: Tensor
    attention: Tensor


@contextmanager
def watching(model: CombinedModel, *, num_last: int) -> Iterator[list[LayerReading]]:
    """Collect a `LayerReading` per bridge layer and forward, in their order, for as long as the block lasts.

    Nothing is stored on the model, and it computes what it would have computed.

    Args:
        model: The pair, in eval mode.
        num_last: Of how many positions at the end of each forward.
    """
    readings: list[LayerReading] = []
    gates: list[Tensor] = []  # of the layer that is running

    def keep_gate(_: Any, __: Any, opening: Tensor) -> None:
        gates[:] = [torch.sigmoid(opening[:, -num_last:])]

    def keep_attention(layer: EnhancedCrossAttention, args: tuple[Tensor], kwargs: dict[str, Any], _: Any) -> None:
        (queries,) = args
        keys_values = kwargs.get("keys_values") or layer.project(kwargs["knowledge"])
        start = max(0, queries.shape[1] - num_last)
        attention = layer.weights(queries, keys=keys_values[0], visible=kwargs["visible"], start=start)
        readings.append(LayerReading(gates.pop(), attention))

    with ExitStack() as hooks, torch.no_grad():
        for layer in model.bridge.layers:
            handles = (
                layer.get_submodule("gate").register_forward_hook(keep_gate),
                layer.register_forward_hook(keep_attention, with_kwargs=True),
            )
            for handle in handles:
                hooks.callback(handle.remove)
        yield readings


@dataclass(frozen=True)
class Watched:
    """What was read while each token of a response was written, on the CPU.

    Args:
        gates: `[layers, num_written]`, the mean over a gate's features.
        attention: `[layers, num_written, source_len]`, the mean over heads.
    """

    gates: Tensor
    attention: Tensor


def watch(model: CombinedModel, example: Example) -> Watched:
    """Let the pair write a response that is given, and see what it reads for each of its tokens.

    Each token is written by the position before it; what the last position would read for a token after it is left out.

    Args:
        model: The pair, in eval mode, with at least one bridge layer.
        example: Prompt and response; what the source says about them is read anew unless the example holds it.
    """
    inputs, num_written = inputs_of(model, example), len(example.response_ids)
    with watching(model, num_last=num_written + 1) as readings:
        model(**inputs, logits_to_keep=1)
    num_read = len(example) - 1
    return Watched(
        torch.stack([reading.gates[0, :-1].float().mean(-1) for reading in readings]).cpu(),
        torch.stack([reading.attention[0].mean(0)[:-1, :num_read] for reading in readings]).cpu(),
    )


def tap_weights(model: CombinedModel) -> Sequence[float]:
    """How much of the knowledge comes from each tap: the learned weights of the mix, which sum to one."""
    mix = model.bridge.tap_mix
    return [1.0] if mix is None else mix.weights.detach().softmax(0).tolist()
