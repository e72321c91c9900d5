"""Keys and values that decoding adds to, without copying what is there."""

import copy
from typing import Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

MIN_ROOM = 64  # tokens


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` that writes new keys and values into room kept for them.

    transformers' own layer joins old and new to a new tensor for every token, so a token costs what all before it take.
    Here room grows by half when it is full, so on average a token copies a few of its own size. What is handed out are
    views of the room. The first keys and values get none: of the bridge's, with `prompt` visibility, there are no more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[Tensor, ...] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add `[batch, heads, new, width]`; all there are, `[batch, heads, past + new, width]` each."""
        past, needed = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        if not past:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states.contiguous(), value_states.contiguous()  # to be read for every token
            return self.keys, self.values
        if torch.is_grad_enabled() and (key_states.requires_grad or self.keys.requires_grad):
            return super().update(key_states, value_states)  # what is written over has no gradient
        if self._room is None or not self._fits(self._room[0], needed):
            self._room = _with_room(self.keys, needed), _with_room(self.values, needed)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., past:needed, :] = new
        self.keys, self.values = (room[..., :needed, :] for room in self._room)
        return self.keys, self.values

    def reset(self) -> None:
        """Forget all."""
        self._room = None
        super().reset()

    def join_(self, other: Self, *, left: int, left_of_other: int) -> None:
        """Take in another's rows, below; `left` columns of padding before these rows, `left_of_other` before those."""
        width, grows = left + self.get_seq_length(), self._room is not None
        rooms = tuple(
            _joined(own, coming, left, left_of_other, columns=_roomy(width) if grows else width)
            for own, coming in ((self.keys, other.keys), (self.values, other.values))
        )
        self.keys, self.values = (room[..., :width, :] for room in rooms)
        self._room = rooms if grows else None

    def keep_(self, rows: Tensor, *, first: int) -> None:
        """Let the other rows go, and the columns before `first`."""
        if self._room is not None and self._fits(self._room[0], self.get_seq_length()):
            width = self.get_seq_length() - first
            self._room = tuple(room[rows, :, first:] for room in self._room)
            self.keys, self.values = (room[..., :width, :] for room in self._room)
        else:
            self.keys, self.values = (states[rows, :, first:] for states in (self.keys, self.values))

    def beginning(self, length: int, *, rows: slice = slice(None)) -> Self:
        """The first tokens, of all or some rows, in a layer of its own; the others are not copied, nor held."""
        layer = type(self)()
        if self.is_initialized:
            layer.update(*(states[rows, :, :length].clone() for states in (self.keys, self.values)))
        return layer

    def _fits(self, room: Tensor, needed: int) -> bool:
        """Whether the keys still lie in the room (rows may have been chosen or repeated since), and more can."""
        same = self.keys.data_ptr() == room.data_ptr() and self.keys.shape[0] == room.shape[0]
        return same and needed <= room.shape[-2]


def beginning_of(layer: CacheLayerMixin, length: int) -> CacheLayerMixin:
    """A copy of the first tokens of a layer that can be cropped."""
    if type(layer) is GrowingLayer:
        return layer.beginning(length)
    own = copy.deepcopy(layer)
    own.crop(length - own.get_seq_length())
    return own


def growing_cache(config: PreTrainedConfig | None = None) -> DynamicCache:
    """A `DynamicCache` whose plain layers grow in place; sliding ones stay what they are."""
    cache = DynamicCache(config=config)
    if config is None:
        cache.layer_class_to_replicate = GrowingLayer
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _roomy(needed: int) -> int:
    """Columns of a room for half as many tokens again as are needed."""
    return needed + max(MIN_ROOM, needed // 2)


def _with_room(states: Tensor, needed: int) -> Tensor:
    """A copy of `[batch, heads, past, width]` with room for more than are needed."""
    room = states.new_empty(*states.shape[:2], _roomy(needed), states.shape[-1])
    room[..., : states.shape[-2], :] = states
    return room


def _joined(above: Tensor, below: Tensor, left: int, left_of_below: int, *, columns: int) -> Tensor:
    """The rows of both with their padding on the left, in so many columns; those behind both hold nothing yet."""
    (num_above, heads, _, width), num_below = above.shape, below.shape[0]
    room = above.new_empty(num_above + num_below, heads, columns, width)
    for rows, states, start in ((room[:num_above], above, left), (room[num_above:], below, left_of_below)):
        rows[:, :, :start] = 0
        rows[:, :, start : start + states.shape[2]] = states
    return room
