"""Tiny modules on one tiny source, and a real server over them on a free port."""

import threading
import time
from contextlib import contextmanager

import openai
import torch
from transformers import AutoModelForCausalLM

from llm_modules import CombinedModel, Source
from llm_modules.serving.address import listening
from llm_modules.serving.app import create_app
from llm_modules.serving.limits import Limits
from llm_modules.serving.modules import Modules
from llm_modules.serving.server import running_server
from tests.conftest import (
    randomise_,
    tiny_generator_config,
    tiny_source_config,
    tiny_tokenizer,
)

ROTARY = {"hidden_size": 12, "num_hidden_layers": 2, "bos_token_id": None}
KINDS = {
    "prompt": {"visibility": "prompt", "generator_window": 9},  # GPT-Neo's table, and a window that prompts overrun
    "rotary": {"visibility": "prompt", "generator": tiny_source_config(**ROTARY), "taps": [0, 2]},
    "causal": {"visibility": "causal"},
    "inside": {"visibility": "causal", "placement": "interleaved", "gate_start": 0.5},
    "bare": {"visibility": "prompt", "num_bridge_layers": 0},
}


def tiny_source():
    """A source in memory, with a tokenizer, that rarely ends a sentence."""
    torch.manual_seed(5)
    source = Source.of(tiny_source_config(max_position_embeddings=4096))
    source.tokenizer = tiny_tokenizer()
    return source


def tiny_module(source, kind, seed=0):
    choices = {"num_heads": 2, "d_adapter": 10, "dropout": 0.0} | KINDS[kind]
    torch.manual_seed(seed)
    generator = choices.pop("generator", None) or tiny_generator_config()
    return randomise_(CombinedModel.from_modules(source, generator, **choices)).eval()


def tiny_modules(kinds=tuple(KINDS), *, alone=False, max_shared_tokens=2048):
    """A registry with a module of each kind, called after it; `alone` adds a generator without a source."""
    source = tiny_source()
    modules = Modules(source, max_shared_tokens=max_shared_tokens)
    for seed, kind in enumerate(kinds):
        modules._add(kind, tiny_module(source, kind, seed), tiny_tokenizer())
    if alone:
        torch.manual_seed(9)
        language_model = AutoModelForCausalLM.from_config(tiny_source_config(hidden_size=18, initializer_range=0.5))
        modules._add("alone", language_model.eval(), tiny_tokenizer())
    return modules


@contextmanager
def running(app):
    """The address of a real server over an application, on a free port of the loopback."""
    server = running_server(app)
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@contextmanager
def serving(modules, *, limits=None, **options):
    """OpenAI's client of a real server over some modules."""
    key = options.get("api_key") or "none"
    with (
        running(create_app(modules, limits=limits or Limits(), **options)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


def metrics_of(client):
    """What Prometheus would be told."""
    return client._client.get(str(client.base_url).removesuffix("v1/") + "metrics").text
