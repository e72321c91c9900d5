"""Controls: what a pair does when its source is silenced."""

import copy

from torch import Tensor

from llm_modules.modeling import CombinedModel
from llm_modules.source import Source


class ZeroedSource(Source):
    """A source whose states are all zeros; its embedding table and output matrix stay."""

    def read(self, *args, **kwargs) -> Tensor:
        """Zeros in the shape of the states."""
        return super().read(*args, **kwargs).zero_()


def with_zeroed_knowledge(model: CombinedModel) -> CombinedModel:
    """The same trained weights on a source that says nothing (weights are shared, not copied)."""
    silent = copy.copy(model)
    source = copy.copy(model.source)
    source.__class__ = ZeroedSource
    silent.source = source
    return silent
