"""Let a frozen model read training examples within part of a budget; what there is no time for stays out."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from llm_modules.compare.budget import Cost, Meter
from llm_modules.data.templates import Example
from llm_modules.features import READ_TOKENS, Reading, distinct_texts, read_text
from llm_modules.prefix import common_prefix
from llm_modules.source import Source
from llm_modules.training import MAX_KNOWLEDGE_BYTES

READING_SHARE = 0.4  # of a budget, at most; the rest is for training on what was read
GROUPS = 8  # at least so many readings in that share: what is read at once cannot be stopped half-way


def read_within(
    source: Source,
    examples: Sequence[Example],
    *,
    taps: list[int],
    visibility: str,
    meter: Meter,
    cost_per_token: Cost,
    seed: int,
    label: str,
) -> list[Example]:
    """Read examples in random order until all are read or a part of the budget is spent; return those with knowledge.

    Args:
        source: Reads.
        examples: Of which to read.
        taps: Layers wanted.
        visibility: `prompt` reads prompts, all else prompt and response.
        meter: Charged.
        cost_per_token: Of reading, as measured.
        seed: Of the order.
        label: What the progress bar calls it.
    """
    order = random.Random(seed).sample(examples, len(examples))
    texts = distinct_texts(order, visibility=visibility)
    shared = common_prefix(texts) if len(texts) > 1 else 0
    found: list[Example] = []
    size, last = 0, 0.0
    a_token = cost_per_token.of(meter.budget)
    at_once = READ_TOKENS if not a_token else min(READ_TOKENS, READING_SHARE / GROUPS / a_token)
    with torch.no_grad(), tqdm(total=len(order), desc=label, unit=" examples") as progress:
        with meter.timed():
            reading = Reading(source, taps=taps, prefix=texts[0][:shared])
        meter.charge(shared * cost_per_token.flops)
        while len(found) < len(order) and size < MAX_KNOWLEDGE_BYTES:
            if found and meter.spent + last > READING_SHARE:
                break
            before, group = meter.spent, _group(order[len(found) :], visibility=visibility, tokens=at_once)
            with meter.timed():
                wanted = distinct_texts(group, visibility=visibility)
                states = {
                    text: row.clone() if reading.prefix_states is None else torch.cat([reading.prefix_states, row])
                    for text, row in zip(wanted, reading(wanted), strict=True)
                }
            meter.charge(sum(len(text) - shared for text in wanted) * cost_per_token.flops)
            found += [replace(one, knowledge=states[read_text(one, visibility)]) for one in group]
            size += sum(row.nbytes for row in states.values())
            last = meter.spent - before
            progress.update(len(group))
    return found


def _group(examples: Sequence[Example], *, visibility: str, tokens: float) -> list[Example]:
    """The next few examples: as many as so many tokens hold, and at least one."""
    group: list[Example] = []
    longest = 0
    for example in examples:
        longest = max(longest, len(read_text(example, visibility)))
        if group and (len(group) + 1) * longest > tokens:
            break
        group.append(example)
    return group
