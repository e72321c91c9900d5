"""Let the source read a training set once, before training, instead of once per epoch."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import DynamicCache

from llm_modules.data.templates import Example
from llm_modules.knowledge import Knowledge
from llm_modules.modeling import CombinedModel
from llm_modules.prefix import common_prefix, repeated
from llm_modules.source import Source

READ_TOKENS = 2048  # tokens read at once: past this a CPU gains nothing and memory grows

Text = tuple[int, ...]


class Reading:
    """A source about to read texts that begin alike: what they begin with it reads once, here.

    Args:
        source: The frozen model.
        taps: Layers whose states are wanted.
        prefix: Token ids that every text begins with, and goes on after.
    """

    def __init__(self, source: Source, *, taps: list[int], prefix: Text = ()) -> None:
        self.source, self.taps, self.prefix = source, taps, prefix
        self.prefix_states: Tensor | None = None  # [len(prefix), taps, d_source]
        self._cache: DynamicCache | None = None
        if prefix:
            self._cache = DynamicCache(config=source.config)
            ids = torch.tensor([prefix], device=source.device)
            found = source.read(ids, attention_mask=torch.ones_like(ids), taps=taps, cache=self._cache)
            self.prefix_states = found[0].cpu()

    def __call__(self, texts: Sequence[Text]) -> list[Tensor]:
        """States of each text after the prefix, `[len(text) - len(prefix), taps, d_source]`; views of one tensor."""
        device, shared = self.source.device, len(self.prefix)
        rows = [torch.tensor(text) for text in texts]
        ids = pad_sequence(rows, batch_first=True).to(device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
        cache = None if self._cache is None else repeated(self._cache, len(texts))
        found = self.source.read(ids[:, shared:], attention_mask=mask, taps=self.taps, cache=cache).cpu()
        return [row[: len(text) - shared] for text, row in zip(texts, found, strict=True)]


def knowledge_bytes(model: CombinedModel, examples: Sequence[Example]) -> int:
    """Memory that the knowledge of these examples takes."""
    tokens = sum(len(read_text(example, model.config.visibility)) for example in examples)
    return tokens * len(model.config.taps) * model.config.d_source * model.source.dtype.itemsize


def with_knowledge(model: CombinedModel, examples: Sequence[Example], *, label: str = "reading") -> list[Example]:
    """The same examples with their knowledge, read by the frozen source: equal texts once, a shared beginning once.

    With `prompt` visibility the source reads the prompt only, else prompt and response.

    Args:
        model: Whose source reads, and whose taps and visibility say what.
        examples: In any order; the order is kept.
        label: What the progress bar calls it.
    """
    texts = distinct_texts(examples, visibility=model.config.visibility)
    shared = common_prefix(texts) if len(texts) > 1 else 0
    prefix = texts[0][:shared] if texts else ()
    reading = Reading(model.source, taps=model.config.taps, prefix=prefix)
    states: dict[Text, Tensor] = {}
    with tqdm(total=sum(len(text) - shared for text in texts), desc=label, unit=" tokens", unit_scale=True) as progress:
        for batch in batches(texts):
            for text, row in zip(batch, reading(batch), strict=True):
                whole = row.clone() if reading.prefix_states is None else torch.cat([reading.prefix_states, row])
                states[text] = whole  # a view would keep the whole batch
            progress.update(sum(len(text) - shared for text in batch))
    return [replace(example, knowledge=states[read_text(example, model.config.visibility)]) for example in examples]


def read_text(example: Example, visibility: str) -> Text:
    """What of an example the source reads: with `prompt` visibility the prompt, else all."""
    return tuple(example.prompt_ids if visibility == "prompt" else example.input_ids)


def distinct_texts(examples: Iterable[Example], *, visibility: str) -> list[Text]:
    """What the source reads of these examples, each text once, from short to long."""
    texts = {read_text(example, visibility) for example in examples}
    return sorted(texts, key=lambda text: (len(text), text))


def batches(texts: Sequence[Text]) -> list[list[Text]]:
    """Neighbours in length, `READ_TOKENS` at a time."""
    found: list[list[Text]] = [[]]
    for text in texts:
        if found[-1] and (len(found[-1]) + 1) * len(text) > READ_TOKENS:
            found.append([])
        found[-1].append(text)
    return [batch for batch in found if batch]


def inputs_of(model: CombinedModel, example: Example) -> dict[str, Any]:
    """One example as `CombinedModel.forward` takes it, with its knowledge if it holds any."""
    ids = torch.tensor([example.input_ids], device=model.device)
    is_prompt = (torch.arange(ids.shape[1], device=ids.device) < len(example.prompt_ids))[None]
    known = None
    if example.knowledge is not None:
        states = example.knowledge[None].to(model.device, model.dtype)
        known = Knowledge(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))
    return {"input_ids": ids, "prompt_mask": is_prompt, "knowledge": known}
