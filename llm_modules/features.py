"""Let the source read a training set once, before training, instead of once per epoch."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from llm_modules.data.templates import Example
from llm_modules.modeling import CombinedModel

READ_TOKENS = 2048  # tokens read at once: past this a CPU gains nothing and memory grows


def knowledge_bytes(model: CombinedModel, examples: Sequence[Example]) -> int:
    """Memory that the knowledge of these examples takes."""
    tokens = sum(len(_read_ids(model, example)) for example in examples)
    return tokens * len(model.config.taps) * model.config.d_source * model.source.dtype.itemsize


def with_knowledge(model: CombinedModel, examples: Sequence[Example], *, label: str = "reading") -> list[Example]:
    """The same examples with their knowledge, read once by the frozen source; equal texts are read once.

    With `prompt` visibility the source reads the prompt only, else prompt and response.

    Args:
        model: Whose source reads, and whose taps and visibility say what.
        examples: In any order; the order is kept.
        label: What the progress bar calls it.
    """
    texts = sorted({tuple(_read_ids(model, example)) for example in examples}, key=len)
    states: dict[tuple[int, ...], Tensor] = {}
    with tqdm(total=sum(map(len, texts)), desc=label, unit=" tokens", unit_scale=True) as progress:
        for batch in _batches(texts):
            ids = [torch.tensor(text) for text in batch]
            padded = pad_sequence(ids, batch_first=True)
            mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
            read = model.source.read(
                padded.to(model.source.device), attention_mask=mask.to(model.source.device), taps=model.config.taps
            ).cpu()
            for text, row in zip(batch, read, strict=True):
                states[text] = row[: len(text)].clone()  # a view would keep the whole batch
            progress.update(sum(map(len, batch)))
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
