"""Controls: what a pair does when its source is silenced, or says something else, or a bridge layer is closed.

Every control is a view: the same trained weights, shared, on another view of the source. Nothing of the model's code is
changed, so a control passes through the very forward and decoding that it is to be compared with.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache

from llm_modules.data.templates import Example
from llm_modules.errors import UserError
from llm_modules.features import Reading, Text, batches, distinct_texts
from llm_modules.modeling import CombinedModel
from llm_modules.source import Source

NUM_MEASURED = 64  # examples whose states say what noise must look like


class SourceView(Source):
    """The same tables and body, shared, with another way to read."""

    def __init__(self, source: Source):
        self.__dict__.update(source.__dict__)


class UnreadSource(SourceView, ABC):
    """Says something in place of states, whatever the text; the body runs only to keep count in a cache."""

    def read(self, input_ids: Tensor, *, attention_mask: Tensor, taps: list[int], cache: Cache | None = None) -> Tensor:
        """As `Source.read`."""
        if cache is not None:
            super().read(input_ids, attention_mask=attention_mask, taps=taps, cache=cache)
        return self.instead(input_ids, taps)

    @abstractmethod
    def instead(self, input_ids: Tensor, taps: list[int]) -> Tensor:
        """What stands in place of the states, `[batch, length, taps, D]`."""


class ZeroedSource(UnreadSource):
    """A source whose states are all zeros; its embedding table and output matrix stay."""

    def instead(self, input_ids: Tensor, taps: list[int]) -> Tensor:
        """Zeros."""
        return self.embedding.new_zeros(*input_ids.shape, len(taps), self.embedding.shape[1])


class WordsSource(UnreadSource):
    """A source that does not read: in place of every state stands the word's row of the embedding table."""

    def instead(self, input_ids: Tensor, taps: list[int]) -> Tensor:
        """The rows, the same for every tap."""
        return self.embed(input_ids)[:, :, None].expand(-1, -1, len(taps), -1)


class NoisySource(UnreadSource):
    """A source that says noise: independent normal numbers with the mean and deviation of each feature of each tap.

    Args:
        source: The source.
        mean: `[taps, D]`, of its states.
        deviation: `[taps, D]`.
        seed: Decides the noise.
    """

    def __init__(self, source: Source, *, mean: Tensor, deviation: Tensor, seed: int):
        super().__init__(source)
        self._mean, self._deviation = mean, deviation
        self._numbers = torch.Generator().manual_seed(seed)

    def instead(self, input_ids: Tensor, taps: list[int]) -> Tensor:
        """New noise at every call."""
        noise = torch.randn(*input_ids.shape, *self._mean.shape, generator=self._numbers)
        return (self._mean + self._deviation * noise).to(self.device, self.dtype)


class SwappedSource(SourceView):
    """A source that reads another prompt in place of the one given, and after it the response that was written.

    The other prompt is brought to the same number of tokens at its beginning, so that every column keeps its place: it
    loses its first tokens, or has the very first repeated.

    Args:
        source: The source.
        donors: For each prompt, the prompt that is read instead.
    """

    def __init__(self, source: Source, donors: Mapping[Text, Text]):
        super().__init__(source)
        self._donors = {prompt: _of_length(donor, len(prompt)) for prompt, donor in donors.items()}
        self._lengths = sorted({len(prompt) for prompt in donors}, reverse=True)

    def read(self, input_ids: Tensor, *, attention_mask: Tensor, taps: list[int], cache: Cache | None = None) -> Tensor:
        """As `Source.read`, of the other prompts; what goes on after a prompt is read as it is.

        Raises:
            UserError: For a text that does not begin with one of the prompts.
        """
        if cache is None or not cache.get_seq_length():
            input_ids = input_ids.clone()
            for row, real in zip(input_ids, attention_mask.bool(), strict=True):
                row[real] = torch.tensor(self._swap(tuple(row[real].tolist())), device=row.device)
        return super().read(input_ids, attention_mask=attention_mask, taps=taps, cache=cache)

    def _swap(self, text: Text) -> Text:
        prompt = next((text[:length] for length in self._lengths if text[:length] in self._donors), None)
        if prompt is None:
            raise UserError(
                "this text begins with none of the prompts for which another was named; name one for it too"
            )
        return self._donors[prompt] + text[len(prompt) :]


def _of_length(donor: Text, length: int) -> Text:
    return donor[-length:] if len(donor) >= length else donor[:1] * (length - len(donor)) + donor


def untrained_source(source: Source, *, seed: int) -> SourceView:
    """The source with a body of its own architecture and random weights; its embedding table and head stay."""
    view = SourceView(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        view.model = Source.of(copy.deepcopy(source.config), dtype=source.dtype).to(source.device).model
    return view


def on_source(model: CombinedModel, source: Source) -> CombinedModel:
    """The same trained weights on another view of the source (weights are shared, not copied)."""
    view = copy.copy(model)
    view.source = source
    return view


def with_zeroed_knowledge(model: CombinedModel) -> CombinedModel:
    """The same trained weights on a source that says nothing."""
    return on_source(model, ZeroedSource(model.source))


@contextmanager
def closed_gates(model: CombinedModel, layers: Sequence[int]) -> Iterator[None]:
    """Shut the gates of these bridge layers: `g = 0`, so a layer returns its queries and what it read is lost.

    In front the bridge still adds the layer's output to its input, as published, so a shut layer doubles `x`; one
    inside the generator passes it on.
    """

    def shut(_: nn.Module, __: tuple[Tensor, ...], opening: Tensor) -> Tensor:
        return torch.full_like(opening, float("-inf"))  # before the sigmoid

    with ExitStack() as hooks:
        for layer in layers:
            handle = model.bridge.get_submodule(f"layers.{layer}.gate").register_forward_hook(shut)
            hooks.callback(handle.remove)
        yield


@dataclass(frozen=True)
class Control:
    """One thing taken from a pair.

    Args:
        name: What tables call it.
        meaning: What is taken, in a sentence.
        model: The pair, or a view of it.
        closed: Bridge layers whose gates are shut.
    """

    name: str
    meaning: str
    model: CombinedModel
    closed: tuple[int, ...] = ()

    @contextmanager
    def applied(self) -> Iterator[CombinedModel]:
        """The pair under this control, for as long as the block lasts."""
        with closed_gates(self.model, self.closed):
            yield self.model


AS_TRAINED, SWAPPED = "as trained", "another prompt"


def all_controls(model: CombinedModel, examples: Sequence[Example], *, seed: int) -> list[Control]:
    """The pair as it is, then without each of the things that it may live by.

    Args:
        model: The pair.
        examples: What it will be asked; they lend each other their prompts, and the noise its statistics.
        seed: Of the noise, the random weights and the choice among prompts that would do.

    Raises:
        UserError: If all examples have the same prompt or the same response.
    """
    source = model.source
    donors = {prompt: tuple(examples[other].prompt_ids) for prompt, other in lend(examples, seed=seed).items()}
    mean, deviation = measure_states(model, examples[:NUM_MEASURED])
    sources = {
        "zeros": (ZeroedSource(source), "every state of the source is zero"),
        "noise": (
            NoisySource(source, mean=mean, deviation=deviation, seed=seed),
            "independent normal noise with the mean and deviation of every feature of the states",
        ),
        SWAPPED: (
            SwappedSource(source, donors),
            "the source reads another question, of the same length in tokens or cut or filled to it",
        ),
        "untrained source": (
            untrained_source(source, seed=seed),
            "the source's architecture with random weights reads; embedding table and head stay",
        ),
        "words only": (
            WordsSource(source),
            "the source's embedding of each word in place of its states: the text, read by nobody",
        ),
    }
    found = [Control(AS_TRAINED, "nothing is taken", model)]
    found += [Control(name, meaning, on_source(model, view)) for name, (view, meaning) in sources.items()]
    layers = range(model.config.num_cross_attention_layers)
    found += [
        Control(f"layer {layer + 1} shut", f"the gate of bridge layer {layer + 1} is shut", model, (layer,))
        for layer in layers
    ]
    if len(layers) > 1:
        found.append(Control("all layers shut", "the gates of all bridge layers are shut", model, tuple(layers)))
    return found


def lend(examples: Sequence[Example], *, seed: int) -> dict[Text, int]:
    """For each prompt the index of another example, whose prompt is the nearest in length and whose response differs.

    Raises:
        UserError: If there is none.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    found = {}
    for example in examples:
        length = len(example.prompt_ids)
        others = [
            index
            for index in order
            if examples[index].prompt_ids != example.prompt_ids and examples[index].response_ids != example.response_ids
        ]
        if not others:
            raise UserError(
                f"all {len(examples)} examples have the same prompt or the same response, so none can lend the others "
                "its own; give more examples"
            )
        found[tuple(example.prompt_ids)] = min(others, key=lambda i: abs(len(examples[i].prompt_ids) - length))
    return found


@torch.no_grad()
def measure_states(model: CombinedModel, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the source's states, each `[taps, D]`, over all tokens but the first of each text.

    The first token of a text says nothing of it, and in many models its states are a hundred times as large as others.
    """
    reading = Reading(model.source, taps=model.config.taps)
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches(distinct_texts(examples, visibility=model.config.visibility)):
        for row in reading(batch):
            states = (row[1:] if len(row) > 1 else row).double()
            count, total, squares = count + len(states), total + states.sum(0), squares + states.square().sum(0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()
