"""Let the source read a training set once, before training, instead of once per epoch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import DynamicCache

from llm_modules.data.templates import Example
from llm_modules.modeling import CombinedModel
from llm_modules.prefix import common_prefix, repeated

READ_TOKENS = 2048  # tokens read at once: past this a CPU gains nothing and memory grows


def knowledge_bytes(model: CombinedModel, examples: Sequence[Example]) -> int:
    """Memory that the knowledge of these examples takes."""
    tokens = sum(len(_read_ids(model, example)) for example in examples)
    return tokens * len(model.config.taps) * model.config.d_source * model.source.dtype.itemsize


def with_knowledge(model: CombinedModel, examples: Sequence[Example], *, label: str = "reading") -> list[Example]:
    """The same examples with their knowledge, read by the frozen source: equal texts once, a shared beginning once.

    With `prompt` visibility the source reads the prompt only, else prompt and response.

    Args:
        model: Whose source reads, and whose taps and visibility say what.
        examples: In any order; the order is kept.
        label: What the progress bar calls it.
    """
    texts = sorted({tuple(_read_ids(model, example)) for example in examples}, key=len)
    source, shared = model.source, common_prefix(texts) if len(texts) > 1 else 0
    read = partial(source.read, taps=model.config.taps)
    prefix_states, prefix_cache = None, None
    if shared:
        prefix_cache = DynamicCache(config=source.config)
        prefix = torch.tensor([texts[0][:shared]], device=source.device)
        prefix_states = read(prefix, attention_mask=torch.ones_like(prefix), cache=prefix_cache)[0].cpu()
    states: dict[tuple[int, ...], Tensor] = {}
    with tqdm(total=sum(len(text) - shared for text in texts), desc=label, unit=" tokens", unit_scale=True) as progress:
        for batch in _batches(texts):
            rows = [torch.tensor(text) for text in batch]
            ids = pad_sequence(rows, batch_first=True).to(source.device)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(source.device)
            cache = None if prefix_cache is None else repeated(prefix_cache, len(batch))
            found = read(ids[:, shared:], attention_mask=mask, cache=cache).cpu()
            for text, row in zip(batch, found, strict=True):
                own = row[: len(text) - shared].clone()  # a view would keep the whole batch
                states[text] = own if prefix_states is None else torch.cat([prefix_states, own])
            progress.update(sum(len(text) - shared for text in batch))
    return [replace(example, knowledge=states[tuple(_read_ids(model, example))]) for example in examples]


def _read_ids(model: CombinedModel, example: Example) -> list[int]:
    return example.prompt_ids if model.config.visibility == "prompt" else example.input_ids


def _batches(texts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Neighbours in length, `READ_TOKENS` at a time."""
    batches: list[list[tuple[int, ...]]] = [[]]
    for text in texts:
        if batches[-1] and (len(batches[-1]) + 1) * len(text) > READ_TOKENS:
            batches.append([])
        batches[-1].append(text)
    return [batch for batch in batches if batch]
