"""Let any model answer many prompts: batched, greedy or sampled, with progress, timed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedTokenizerBase

from llm_modules.data.dataset import check_ids, padding_id
from llm_modules.prefix import repeated


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


@torch.no_grad()
def write(
    model,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    prefix: Sequence[int] = (),
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
        label: What the progress bar calls it.
        **generate_kwargs: Passed on to `generate`.
    """
    vocab_size = model.config.vocab_size
    pad, eos = padding_id(tokenizer, vocab_size=vocab_size), tokenizer.eos_token_id
    check_ids([token for prompt in prompts for token in prompt], tokenizer, vocab_size=vocab_size)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    num_tokens, start = 0, time.perf_counter()
    prefix_cache = _read_prefix(model, prefix) if prefix else None
    settings = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": pad, "eos_token_id": eos}
    with tqdm(total=len(prompts), desc=label, unit=" answers") as progress:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            width = max(len(prompts[index]) for index in chosen)
            rows = [[*prefix, *[pad] * (width - len(prompts[index])), *prompts[index]] for index in chosen]
            ids = torch.tensor(rows, device=model.device)
            mask = torch.ones_like(ids)
            for row, index in enumerate(chosen):
                mask[row, len(prefix) : len(prefix) + width - len(prompts[index])] = 0
            cached = {} if prefix_cache is None else {"past_key_values": repeated(prefix_cache, len(chosen))}
            written = model.generate(ids, attention_mask=mask, **cached, **(settings | generate_kwargs))
            for index, tokens in zip(chosen, written[:, ids.shape[1] :].tolist(), strict=True):
                answer = tokens[: tokens.index(eos)] if eos in tokens else tokens
                num_tokens += len(answer) + (eos in tokens)
                texts[index] = tokenizer.decode(answer, skip_special_tokens=True)
            progress.update(len(chosen))
    return Writing(texts, num_tokens, time.perf_counter() - start)


def _read_prefix(model, prefix: Sequence[int]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([list(prefix)], device=model.device), past_key_values=cache, use_cache=True)
    return cache
