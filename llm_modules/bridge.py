"""The bridge: from the source's states to the generator's input, and on into its blocks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_modules.attention import EnhancedCrossAttention, VisibleKnowledge
from llm_modules.configuration import CombinedConfig
from llm_modules.window import Window

KeysValues = tuple[Tensor, Tensor]
Read = Callable[[int, Tensor], Tensor]  # layer and x `[batch, length, d]` to ECA(p, x), the same shape
CLOSED_GATE_BIAS = -4.0  # sigmoid(-4) = 0.018: closed, yet with a gradient to open by


class TapMix(nn.Module):
    """`scale * sum_k softmax(w)_k * LN(h_k)`: one state from several source layers, by learned weights.

    Each tap is normalised first (without parameters), because the residual stream grows by orders of magnitude
    between the first layer and the last, and the last would drown the rest.
    """

    def __init__(self, num_taps: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_taps))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, states: Tensor) -> Tensor:
        """`[batch, source_len, taps, D]` to `[batch, source_len, D]`."""
        normed = F.layer_norm(states, states.shape[-1:])
        return self.scale * (self.weights.softmax(0)[None] @ normed).squeeze(2)


class Bridge(nn.Module):
    """Carry knowledge into the generator's input `z`.

        p = pre_projection(mix(taps));  x = compress(p);  x = x + ECA(p, x) per layer;  z = x + skip(p)

    With `prompt` visibility the response has no source state: its tokens enter as `x = LN(W embedding)`, the source's
    frozen embedding through a learned projection, read the prompt's `p` in every layer, and take no skip.

    `layers` holds the cross-attention layers in front of the generator first, then those inside it, which read the same
    `p`: see `interleaving.py`.

    Args:
        config: Widths, taps, visibility, placement and start of the pair.
    """

    def __init__(self, config: CombinedConfig):
        super().__init__()
        d_source, d_generator = config.d_source, config.d_generator
        d_middle = (d_source + d_generator) // 2
        self.tap_mix: TapMix | None = TapMix(len(config.taps)) if len(config.taps) > 1 else None
        self.pre_projection = nn.Linear(d_source, d_source) if config.pre_projection else nn.Identity()
        self.compress = nn.Sequential(
            nn.Linear(d_source, d_middle),
            nn.LayerNorm(d_middle),
            nn.GELU(),
            nn.Linear(d_middle, d_generator),
            nn.LayerNorm(d_generator),
        )
        self.layers = nn.ModuleList(
            EnhancedCrossAttention(
                d_generator, d_source, num_heads=config.num_heads, d_adapter=config.d_adapter, dropout=config.dropout
            )
            for _ in range(config.num_cross_attention_layers)
        )
        self._num_in_front = config.num_bridge_layers
        self.skip_projection = nn.Linear(d_source, d_generator)
        self.response_embedding: nn.Sequential | None = (
            nn.Sequential(nn.Linear(d_source, d_generator), nn.LayerNorm(d_generator))
            if config.visibility == "prompt"
            else None
        )

    def forward(
        self,
        states: Tensor | None,
        *,
        visible: VisibleKnowledge,
        embeddings: Tensor | None = None,
        is_prompt: Tensor | None = None,
        window: Window | None = None,
        remember: Callable[[int, KeysValues | None], KeysValues] | None = None,
    ) -> tuple[Tensor, Read]:
        """The generator's input `[batch, length, d]`, and how the layers inside it read the same knowledge.

        Args:
            states: `[batch, source_len, taps, D]`, the source's states of columns `0..source_len` of the input; `None`
                while decoding with `prompt` visibility, where the cache holds all knowledge.
            visible: Who may read what.
            embeddings: `[batch, length, d]`, what `response_embedding` makes of the source's embeddings of the input;
                `prompt` visibility only, and not needed where all of the input is prompt.
            is_prompt: `[batch, length]`, True where a position has a source state; `prompt` visibility only.
            window: The columns wanted, if not all; the result is then `[batch, num_kept, d]`.
            remember: Called with each layer's index and new keys and values; returns all there are to attend to.
        """
        knowledge = None if states is None else self.pre_projection(self._mix(states))
        x, skip = self._enter(knowledge, embeddings, is_prompt)
        if window is not None:
            x, skip = window.take(x), None if skip is None else window.take(skip)
        read = partial(self._read, knowledge=knowledge, visible=visible, remember=remember)
        for index in range(self._num_in_front):
            x = x + read(index, x)
        return (x if skip is None else x + skip), read

    def _read(
        self,
        index: int,
        x: Tensor,
        *,
        knowledge: Tensor | None,
        visible: VisibleKnowledge,
        remember: Callable[[int, KeysValues | None], KeysValues] | None,
    ) -> Tensor:
        layer = self._layers[index]
        if remember is None:  # keys and values within the layer: checkpointing then keeps none of them
            return layer(x, knowledge=knowledge, visible=visible)
        keys_values = remember(index, None if knowledge is None else layer.project(knowledge))
        return layer(x, keys_values=keys_values, visible=visible)

    @property
    def _layers(self) -> list[EnhancedCrossAttention]:
        return list(self.layers)  # type: ignore[arg-type] # a ModuleList knows modules only

    def _mix(self, states: Tensor) -> Tensor:
        return states.squeeze(2) if self.tap_mix is None else self.tap_mix(states)  # one tap passes unchanged

    def _enter(self, knowledge: Tensor | None, embeddings: Any, is_prompt: Any) -> tuple[Tensor, Tensor | None]:
        """First `x` and the skip connection, for columns with a source state and columns without."""
        if embeddings is None:
            return self.compress(knowledge), self.skip_projection(knowledge)
        x = embeddings
        if knowledge is None:
            return x, None
        missing = (0, 0, 0, embeddings.shape[1] - knowledge.shape[1])  # response columns hold no knowledge
        on_prompt = is_prompt[..., None]
        x = torch.where(on_prompt, F.pad(self.compress(knowledge), missing), x)
        return x, F.pad(self.skip_projection(knowledge), missing) * on_prompt

    def close_gates_(self) -> None:
        """Start with every cross-attention gate (almost) closed, for `start="identity"`."""
        self._set_gates_(CLOSED_GATE_BIAS)

    def open_gates_(self, share: float) -> None:
        """Start with every cross-attention gate open by about a share in (0, 1)."""
        self._set_gates_(math.log(share / (1 - share)))

    def _set_gates_(self, bias: float) -> None:
        for layer in self._layers:
            nn.init.constant_(layer.gate.bias, bias)
