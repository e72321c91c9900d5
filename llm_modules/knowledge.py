"""Knowledge: what the source knows about a text, as states; and the cache that decoding carries along."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, EncoderDecoderCache

from llm_modules.configuration import CombinedConfig
from llm_modules.errors import UserError
from llm_modules.growing import growing_cache
from llm_modules.loss import IGNORED


@dataclass
class Knowledge:
    """The source's states of a text, read once and used as often as wanted.

    Args:
        states: `[batch, source_len, taps, d_source]`; column `j` belongs to column `j` of the input.
        mask: `[batch, source_len]` bool, True where there is knowledge, False on padding.
    """

    states: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "Knowledge":
        """The same on another device."""
        return Knowledge(self.states.to(device), self.mask.to(device))

    def repeat_interleave(self, repeats: int) -> "Knowledge":
        """Each row `repeats` times, as beams and several returned sequences need it."""
        return Knowledge(self.states.repeat_interleave(repeats, 0), self.mask.repeat_interleave(repeats, 0))


_ROW_MASKS = ("prompt_mask", "window_mask")  # of the cache, a row each


class CombinedCache(EncoderDecoderCache):
    """All that decoding remembers: the generator's and the source's keys and values, and the bridge's.

    `self_attention_cache` is the generator's, `cross_attention_cache` holds one entry per bridge layer.

    Args:
        config: The pair's configuration.
    """

    def __init__(self, config: CombinedConfig):
        super().__init__(growing_cache(config.generator), growing_cache())
        self.source_cache = growing_cache(config.source) if config.visibility == "causal" else None
        self.prompt_mask: Tensor | None = None  # [batch, prompt_len] knowledge that `prompt` visibility may read
        self.window_mask: Tensor | None = None  # [batch, num_kept] columns of the prompt that entered the generator
        self.num_left_out = 0  # columns of the prompt that did not

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the input so far, whether or not all of them entered the generator."""
        return super().get_seq_length(layer_idx) + self.num_left_out

    def generator_mask(self, attention_mask: Tensor) -> Tensor:
        """Of a mask over all columns, `[batch, past + length]`, the part over those that entered the generator."""
        if self.window_mask is None:
            return attention_mask
        windowed = self.window_mask.shape[1]
        written = attention_mask[:, windowed + self.num_left_out :]
        return torch.cat([self.window_mask.to(written.dtype), written], dim=1)

    def remember(self, layer: int, keys_values: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Add a bridge layer's new keys and values, if any; all there are."""
        if keys_values is not None:
            return self.cross_attention_cache.update(*keys_values, layer)
        entry = self.cross_attention_cache.layers[layer]
        return entry.keys, entry.values

    @property
    def _own_caches(self) -> list[Cache]:
        return [self.source_cache] if self.source_cache is not None else []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows of the beams that survive."""
        super().reorder_cache(beam_idx)
        for cache in self._own_caches:
            cache.reorder_cache(beam_idx)
        self._select_prompts(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        for cache in self._own_caches:
            cache.batch_select_indices(indices)
        self._select_prompts(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        for cache in self._own_caches:
            cache.batch_repeat_interleave(repeats)
        for name in _ROW_MASKS:
            if (mask := getattr(self, name)) is not None:
                setattr(self, name, mask.repeat_interleave(repeats, 0))

    def crop(self, tokens_to_remove: int) -> None:
        """Take drafted tokens back."""
        super().crop(tokens_to_remove)
        if self.source_cache is not None:  # with `prompt` visibility the bridge remembers the prompt alone
            self.source_cache.crop(tokens_to_remove)
            self.cross_attention_cache.crop(tokens_to_remove)

    def _select_prompts(self, rows: Tensor) -> None:
        for name in _ROW_MASKS:
            if (mask := getattr(self, name)) is not None:
                setattr(self, name, mask.index_select(0, rows.to(mask.device)))


def resolve_prompt_mask(
    prompt_mask: Tensor | None, labels: Tensor | None, attention_mask: Tensor, *, past: int, length: int
) -> Tensor:
    """Which of the `length` current tokens are prompt: `[batch, length]` bool.

    Raises:
        UserError: If a row has no prompt, or the prompt is not one prefix.
    """
    real = attention_mask[:, -length:].bool()
    if past:
        if prompt_mask is not None and prompt_mask[:, past:].any():
            raise UserError(
                "with visibility='prompt' the whole prompt must come in the first call; it has ended already"
            )
        return torch.zeros_like(real)
    if prompt_mask is not None:
        is_prompt = F.pad(prompt_mask.bool(), (0, length - prompt_mask.shape[1])) & real
    elif labels is not None:
        is_prompt = (labels != IGNORED).cumsum(-1).eq(0) & real
    else:
        return real
    if not is_prompt.any(-1).all():
        row = int((~is_prompt.any(-1)).nonzero()[0])
        raise UserError(f"row {row} has no prompt; visibility='prompt' reads the prompt only: mark it in prompt_mask")
    ended = (real & ~is_prompt).cumsum(-1).bool()
    if (is_prompt & ended).any():
        row = int((is_prompt & ended).any(-1).nonzero()[0])
        raise UserError(f"prompt_mask of row {row} is not one prefix; train a conversation as one example per turn")
    return is_prompt
