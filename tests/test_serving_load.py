"""Many clients at once, mixed modules, some leaving half-way: nobody gets another's answer, and memory stays flat."""

import psutil
import pytest
import torch

from llm_modules.chat import Sampling
from llm_modules.data.templates import encode_prompt
from llm_modules.serving.drawing import Drawing
from llm_modules.serving.limits import Limits
from tests.load_clients import all_ask, requests
from tests.tiny_server import KINDS, serving, tiny_modules

MARGIN = 1e-3  # below it a choice may turn by the last bits of batched sums
MODELS = (*KINDS, "source")


@torch.no_grad()
def may_differ_there(modules, request, said, alone):
    """Whether two answers first differ where the choice hung on less than `MARGIN`.

    The words up to there are read again in one forward, and the choice is made again with every score a little higher
    and lower: for a sampled word, by how far the drawn number lies from the edge of its share.
    """
    module = modules.get(request["model"])
    prompt = encode_prompt(request["messages"], module.tokenizer)
    first, second = (module.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (said, alone))
    place = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(first), len(second)) if place is None else place
    logits, rows = module.speaker.begin(prompt)
    for token in first[:place]:
        logits = module.speaker.step(torch.tensor([token]), rows)
    if request["temperature"] == 0:
        best = logits[0].topk(2).values
        return float(best[0] - best[1]) < MARGIN
    drawing = Drawing(Sampling(temperature=request["temperature"], top_k=0, top_p=1.0, seed=request["seed"]))
    for _ in range(place):
        drawing.draw(logits[0])  # only to use up a number
    chance = torch.rand((), generator=drawing._random, dtype=torch.double)
    edges = (logits[0] / request["temperature"]).softmax(-1).double().cumsum(-1)
    return float((edges - chance).abs().min()) < MARGIN


def check_load(num_clients, num_requests, limits):
    """Every answer is the one its request gets alone; how much the server's process grew, as a share."""
    modules = tiny_modules()
    plan = [requests(num_requests, seed=client, models=MODELS) for client in range(num_clients)]
    with serving(modules, limits=limits) as client:
        all_ask(client.base_url, plan)  # caches fill
        memory = psutil.Process().memory_info().rss
        told = all_ask(client.base_url, plan)
        grown = psutil.Process().memory_info().rss / memory - 1
        (by_itself,) = all_ask(client.base_url, [[request for asked in plan for request in asked]])
    asked, told = ([one for each in lists for one in each] for lists in (plan, told))
    compared = differing = 0
    for request, (model, text, _), (_, alone, turned_away) in zip(asked, told, by_itself, strict=True):
        assert turned_away == 0
        assert model == request["model"]
        if None in (text, alone):
            assert request["leaves"]
            continue
        compared += 1
        if text != alone:
            differing += 1
            assert may_differ_there(modules, request, text, alone), (request, text, alone)
    refused = sum(turned_away for _, _, turned_away in told)
    print(
        f"{compared} answers compared, {differing} differ within the margin; {refused} times turned away; "
        f"memory grew by {grown:.1%}"
    )
    assert compared >= num_clients * num_requests * 0.85
    return grown


def test_clients_at_once_get_the_answers_they_get_alone():
    check_load(8, 5, Limits(max_at_once=8, max_waiting=4))


@pytest.mark.slow
def test_sixty_four_clients_at_once_get_the_answers_they_get_alone():
    assert check_load(64, 10, Limits(max_at_once=32, max_waiting=16)) < 0.05
