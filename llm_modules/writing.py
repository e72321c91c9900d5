"""Let any model answer many prompts: batched, greedy or sampled, with progress, timed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import Cache, DynamicCache, PreTrainedTokenizerBase

from llm_modules.data.dataset import check_ids, padding_id
from llm_modules.prefix import repeated

ROUND = 24  # tokens between looks at which rows have finished


@dataclass(frozen=True)
class Writing:
    """What a model wrote.

    Args:
        texts: One answer a prompt, in the order of the prompts, without special tokens.
        num_tokens: Tokens written in all, padding of finished rows left out.
        seconds: Wall-clock time.
    """

    texts: list[str]
    num_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens written per second, over the whole batch."""
        return self.num_tokens / self.seconds


def in_turn(parts: Sequence[Writing]) -> Writing:
    """One from those of several writers who took the prompts in turn, at the same time."""
    texts = [""] * sum(len(part.texts) for part in parts)
    for index, part in enumerate(parts):
        texts[index :: len(parts)] = part.texts
    return Writing(texts, sum(part.num_tokens for part in parts), max(part.seconds for part in parts))


@torch.no_grad()
def write(
    model,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    prefix: Sequence[int] = (),
    stop_ids: Sequence[int] = (),
    label: str = "writing",
    **generate_kwargs,
) -> Writing:
    """Answer every prompt with `model.generate`, greedily unless told otherwise.

    Args:
        model: Anything with transformers' `generate` and a `config` with `vocab_size`.
        prompts: Token ids of each prompt.
        tokenizer: To pad, to stop and to decode.
        max_new_tokens: Most tokens of an answer.
        batch_size: Prompts answered at once.
        prefix: Token ids that stand before every prompt, read once for all of them (demonstrations of a language
            model that keeps its keys and values in a `DynamicCache`).
        stop_ids: Tokens that end an answer, beside the end-of-sequence token.
        label: What the progress bar calls it.
        **generate_kwargs: Passed on to `generate`.
    """
    vocab_size = model.config.vocab_size
    pad, ends = padding_id(tokenizer, vocab_size=vocab_size), [tokenizer.eos_token_id, *stop_ids]
    check_ids([token for prompt in prompts for token in prompt], tokenizer, vocab_size=vocab_size)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    num_tokens, start = 0, time.perf_counter()
    prefix_cache = _read_prefix(model, prefix) if prefix else None
    settings = {"do_sample": False, "pad_token_id": pad, "eos_token_id": ends} | generate_kwargs
    with tqdm(total=len(prompts), desc=label, unit=" answers") as progress:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            width = max(len(prompts[index]) for index in chosen)
            rows = [[*prefix, *[pad] * (width - len(prompts[index])), *prompts[index]] for index in chosen]
            ids = torch.tensor(rows, device=model.device)
            mask = torch.ones_like(ids)
            for row, index in enumerate(chosen):
                mask[row, len(prefix) : len(prefix) + width - len(prompts[index])] = 0
            cache = None if prefix_cache is None else repeated(prefix_cache, len(chosen))
            for row, tokens in _answers(model, ids, mask, cache, max_new_tokens, ends, settings):
                index = chosen[row]
                num_tokens += len(tokens)
                texts[index] = tokenizer.decode(_before_end(tokens, ends), skip_special_tokens=True)
                progress.update()
    return Writing(texts, num_tokens, time.perf_counter() - start)


def _answers(
    model, ids: Tensor, mask: Tensor, cache: Cache | None, max_new_tokens: int, ends: list[int], settings: dict
) -> Iterator[tuple[int, list[int]]]:
    """Rows and what was written in each, as they finish; every `ROUND` tokens the finished ones leave the batch."""
    rows, width, left = torch.arange(len(ids)), ids.shape[1], max_new_tokens
    while True:
        cached = {} if cache is None else {"past_key_values": cache}
        written = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=min(ROUND, left),
            return_dict_in_generate=True,
            **cached,
            **settings,
        )
        left -= ROUND
        ids, cache = written.sequences, written.past_key_values
        is_end = torch.isin(ids[:, width:], torch.tensor(ends, device=ids.device))
        done = is_end.any(-1) if left > 0 else torch.ones_like(is_end[:, 0])
        for row in done.nonzero().flatten().tolist():
            tokens = ids[row, width:].tolist()
            yield int(rows[row]), tokens[: int(is_end[row].int().argmax()) + 1] if is_end[row].any() else tokens
        if done.all():
            return
        going = (~done).nonzero().flatten()
        rows, ids, mask = rows[going.cpu()], ids[going], mask[going]
        mask = F.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
        if cache is not None and len(going) < len(done):
            cache.batch_select_indices(going)


def _before_end(tokens: list[int], ends: list[int]) -> list[int]:
    return tokens[:-1] if tokens and tokens[-1] in ends else tokens


def _read_prefix(model, prefix: Sequence[int]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([list(prefix)], device=model.device), past_key_values=cache, use_cache=True)
    return cache
