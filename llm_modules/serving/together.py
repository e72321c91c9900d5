"""One step of several modules of one form: what has no weights is done once, for the rows of all of them."""

import copy
import json
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from llm_modules.configuration import CombinedConfig
from llm_modules.modeling import CombinedModel
from llm_modules.readout import Readout

# tested: every layer with weights takes rows first, and nothing else looks at its weights
GENERATORS = ("gpt_neo", "llama")
SMALL = 2**18  # weights of a layer: to read more takes ten times the call that stacking saves, and a stack is a copy
CHOICES = (
    "visibility", "head", "start", "taps", "generator_window", "interleave_every", "num_bridge_layers", "num_heads",
    "d_adapter", "pre_projection",
)  # fmt: skip
NAMES = ("_name_or_path", "architectures", "dtype", "transformers_version")  # in a configuration, of no consequence

_running: ContextVar["Together"] = ContextVar("together")  # of the step that is running in this thread


def form_of(config: CombinedConfig) -> str | None:
    """The same for pairs on one source that differ in their weights alone; `None` for those that are stepped alone."""
    generator = config.generator.to_dict()
    if generator["model_type"] not in GENERATORS:
        return None
    shape = {name: value for name, value in generator.items() if name not in NAMES}
    return json.dumps([shape, [getattr(config, name) for name in CHOICES]], sort_keys=True, default=str)


class Part:
    """A pair as one of several.

    Args:
        model: The pair, in eval mode, its head made ready.
    """

    def __init__(self, model: CombinedModel):
        self.model = model
        self.layers = _layers_of(model)

    @cached_property
    def common(self) -> CombinedModel:
        """The pair's wiring, without its weights: each layer that has some is every part's own for its own rows."""
        model = self.model
        shared = [*model.parameters(), *model.buffers(), model.config, model.tokenizer, model._folded_head]
        common = copy.deepcopy(model, {id(one): one for one in shared})
        common._folded_head = _Heads()  # type: ignore[assignment] # answers all that a folded head is asked
        places = {id(layer): place for place, layer in enumerate(_layers_of(common))}
        for module in list(common.modules()):
            for name, child in module.named_children():
                if id(child) in places:
                    setattr(module, name, _Own(places[id(child)], child))
        return common


class Together:
    """Parts of one form, as one model for the rows of all: `rows` part by part, in the order given.

    Their small linear layers are one product over stacked weights where all have as many rows, from the second step on:
    while one after another joins, stacking would cost more than it brings. Other layers and heads are each part's own
    (of a head nearly all is reading it).

    Args:
        parts: Two or more.
    """

    def __init__(self, parts: Sequence[Part]):
        self.parts = list(parts)
        self.model = parts[0].common
        self._stacks: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._counts: list[int] = []
        self._stacking = False

    def step(self, counts: Sequence[int], **inputs) -> Tensor:
        """Logits of the last column, `[rows, V]`.

        Args:
            counts: Rows of each part.
            **inputs: Of the model's forward, one column a row.
        """
        self._stacking = bool(self._counts) and len(set(counts)) == 1
        self._counts = list(counts)
        token = _running.set(self)
        try:
            logits: Tensor = self.model(**inputs).logits[:, -1]
        finally:
            _running.reset(token)
        return logits

    def through(self, place: int, states: Tensor) -> Tensor:
        """States `[rows, ...]`, each through its part's layer in that place."""
        layers = [part.layers[place] for part in self.parts]
        first = layers[0]
        if not self._stacking or type(first) is not nn.Linear or first.weight.numel() > SMALL:
            return torch.cat([layer(own) for layer, own in zip(layers, self.split(states), strict=True)])
        weight, bias = self._stacked(place, layers)
        rows = states.reshape(len(layers), -1, states.shape[-1])
        read = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias, rows, weight)
        return read.view(*states.shape[:-1], -1)

    def split(self, states: Tensor) -> Sequence[Tensor]:
        """Each part's rows."""
        return states.split(self._counts)

    def _stacked(self, place: int, layers: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """Weights `[parts, in, out]` and biases `[parts, 1, out]`."""
        if place not in self._stacks:
            bias = None if layers[0].bias is None else torch.stack([layer.bias for layer in layers])[:, None]
            self._stacks[place] = torch.stack([layer.weight.T for layer in layers]), bias
        return self._stacks[place]


class _Own(nn.Module):
    """Stands where a layer with weights stood."""

    def __init__(self, place: int, layer: nn.Module):
        super().__init__()
        self.place = place
        self.layer = layer  # whose weights tell dtype and device

    def forward(self, states: Tensor) -> Tensor:
        return _running.get().through(self.place, states)


class _Heads:
    """In a folded head's place: every part's own."""

    def is_of(self, *_: Tensor) -> bool:
        return True

    def read(self, states: Tensor) -> "_Readouts":
        running = _running.get()
        own = zip(running.parts, running.split(states), strict=True)
        return _Readouts([part.model._read_out(rows) for part, rows in own])


@dataclass(frozen=True)
class _Readouts:
    of_parts: list[Readout]

    def logits(self) -> Tensor:
        return torch.cat([readout.logits() for readout in self.of_parts])


def _layers_of(model: CombinedModel) -> list[nn.Module]:
    """All that have weights of their own."""
    return [layer for layer in model.modules() if next(layer.parameters(recurse=False), None) is not None]
