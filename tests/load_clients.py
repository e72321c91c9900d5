"""Clients of a server under load; without torch, so that a process of theirs costs little."""

import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import openai


def requests(count, seed, models):
    """Requests as a client makes them; one in ten leaves half-way."""
    rng = random.Random(seed)
    made = []
    for number in range(seed * count, (seed + 1) * count):
        words = " ".join(rng.choice("abcdefghij") for _ in range(rng.randint(1, 25)))
        made.append(
            {
                "model": rng.choice(models),
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
    """Model and text of an answer, and how often it was turned away before; no text where the client left."""
    arguments = {name: value for name, value in request.items() if name != "leaves"}
    turned_away = 0
    while True:
        try:
            if not request["stream"]:
                whole = client.chat.completions.create(**arguments)
                return whole.model, whole.choices[0].message.content, turned_away
            with client.chat.completions.create(**arguments) as stream:
                model, text = None, ""
                for chunk in stream:
                    model, text = chunk.model, text + (chunk.choices[0].delta.content or "")
                    if request["leaves"] and text:
                        return model, None, turned_away
                return model, text, turned_away
        except openai.RateLimitError as full:
            turned_away += 1
            time.sleep(float(full.response.headers["retry-after"]))


def ask_in_turn(address, asked):
    """One client, its requests one after another; answers in their order."""
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=600) as client:
        return [ask(client, request) for request in asked]


def _all_ask(address, plan):
    with ThreadPoolExecutor(len(plan)) as pool:
        return list(pool.map(ask_in_turn, [address] * len(plan), plan))


def all_ask(address, plan):
    """Every client in a thread of its own, all of them in one process of their own; answers in the plan's order."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
        return apart.submit(_all_ask, str(address), plan).result()
