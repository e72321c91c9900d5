"""Many clients at once, mixed modules, some leaving half-way: nobody gets another's answer, and memory stays flat."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
import torch

from llm_modules.chat import Sampling
from llm_modules.data.templates import encode_prompt
from llm_modules.serving.drawing import Drawing
from llm_modules.serving.limits import Limits
from tests.tiny_server import KINDS, serving, tiny_modules

MARGIN = 1e-3  # below it a choice may turn by the last bits of batched sums
MODELS = (*KINDS, "source")


def requests(count, seed):
    """Requests as a client makes them; one in ten leaves half-way."""
    rng = random.Random(seed)
    made = []
    for number in range(seed * count, (seed + 1) * count):
        words = " ".join(rng.choice("abcdefghij") for _ in range(rng.randint(1, 25)))
        made.append(
            {
                "model": rng.choice(MODELS),
                "messages": [{"role": "user", "content": words}],
                "temperature": rng.choice((0.0, 1.0)),
                "seed": rng.randrange(1000),
                "max_tokens": rng.randint(1, 24),
                "stream": number % 10 == 9 or rng.random() < 0.5,
                "leaves": number % 10 == 9,
            }
        )
    return made


def ask(client, request):
    """Model and text of an answer; `None` where the client left or was turned away."""
    arguments = {name: value for name, value in request.items() if name != "leaves"}
    while True:
        try:
            if not request["stream"]:
                whole = client.chat.completions.create(**arguments)
                return whole.model, whole.choices[0].message.content
            with client.chat.completions.create(**arguments) as stream:
                model, text = None, ""
                for chunk in stream:
                    model, text = chunk.model, text + (chunk.choices[0].delta.content or "")
                    if request["leaves"] and text:
                        return None
                return model, text
        except openai.RateLimitError:
            time.sleep(0.05)


def all_ask(client, per_client):
    """Every client in a thread of its own, its requests one after another; answers in their order."""
    with ThreadPoolExecutor(len(per_client)) as pool:
        return list(pool.map(lambda asked: [ask(client, request) for request in asked], per_client))


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
    modules = tiny_modules()
    plan = [requests(num_requests, seed=client) for client in range(num_clients)]
    with serving(modules, limits=limits) as client:
        client = client.with_options(timeout=600)
        all_ask(client, plan)  # caches fill
        memory = psutil.Process().memory_info().rss
        told = all_ask(client, plan)
        grown = psutil.Process().memory_info().rss / memory - 1
        by_itself = [[None if request["leaves"] else ask(client, request) for request in asked] for asked in plan]
    compared = differing = 0
    for asked, answers, alone in zip(plan, told, by_itself, strict=True):
        for request, answer, expected in zip(asked, answers, alone, strict=True):
            if answer is None or expected is None:
                assert request["leaves"]
                continue
            assert answer[0] == expected[0] == request["model"]
            compared += 1
            if answer[1] != expected[1]:
                differing += 1
                assert may_differ_there(modules, request, answer[1], expected[1]), (request, answer, expected)
    print(f"{compared} answers compared, {differing} differ within the margin; memory grew by {grown:.1%}")
    assert compared >= num_clients * num_requests * 0.85
    return grown


def test_clients_at_once_get_the_answers_they_get_alone():
    check_load(8, 5, Limits(max_at_once=8, max_waiting=4))


@pytest.mark.slow
def test_sixty_four_clients_at_once_get_the_answers_they_get_alone():
    assert check_load(64, 10, Limits(max_at_once=32, max_waiting=16)) < 0.05
