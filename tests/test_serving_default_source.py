"""OpenAI's client on the default source and two modules: one that starts as the source, one that was just made."""

import pytest
import torch

from llm_modules import CombinedModel
from llm_modules.data.templates import encode_prompt
from llm_modules.serving.modules import Modules
from tests.tiny_server import serving

ASK = [{"role": "user", "content": "What is the capital of France?"}]
GENERATOR = {
    "model_type": "gpt_neo", "hidden_size": 64, "num_layers": 2, "attention_types": [[["global"], 2]], "num_heads": 4,
    "vocab_size": 5, "max_position_embeddings": 256,
}  # fmt: skip
# the names of the modules say what they read
MODULES = {"identity": {"visibility": "causal"}, "fresh": {"visibility": "prompt", "taps": [0, 8]}}
MODELS = ("source", *MODULES)


@pytest.fixture(scope="module")
def modules(default_source):
    modules = Modules(default_source, max_shared_tokens=2000)
    torch.manual_seed(0)
    for name, choices in MODULES.items():
        pair = CombinedModel.from_modules(default_source, GENERATOR, num_heads=4, d_adapter=16, **choices)
        modules._add(name, pair.eval(), default_source.tokenizer)
    return modules


@pytest.fixture(scope="module")
def client(modules):
    with serving(modules) as client:
        yield client


def chat(client, model, **others):
    return client.chat.completions.create(model=model, messages=ASK, **({"max_tokens": 6} | others))


def test_module_that_starts_as_the_source_answers_as_the_source_does(client, default_source):
    ids = torch.tensor([encode_prompt(ASK, default_source.tokenizer)])
    written = default_source.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    expected = default_source.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert "Paris" in expected
    assert {chat(client, model).choices[0].message.content for model in ("source", "identity")} == {expected}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "others",
    [
        {"temperature": 0.8, "seed": 4, "top_p": 0.9, "extra_body": {"top_k": 30}},
        {"n": 2, "temperature": 1.0, "seed": 2},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": [" of", "zebra"]},
        {"max_completion_tokens": 3},
    ],
    ids=lambda others: next(iter(others)),
)
def test_every_parameter_streamed_and_not(client, model, others):
    whole = chat(client, model, **others)
    chunks = list(chat(client, model, stream=True, stream_options={"include_usage": True}, **others))
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert mine[-1].finish_reason == choice.finish_reason
        if choice.logprobs:
            tokens = [token.token for one in mine if one.logprobs for token in one.logprobs.content]
            assert tokens == [token.token for token in choice.logprobs.content]
        assert not any(stop in choice.message.content for stop in others.get("stop", ()))


def test_text_is_continued(client):
    whole = client.completions.create(model="source", prompt="The capital of France is", max_tokens=4, logprobs=1)
    assert "Paris" in whole.choices[0].text and "".join(whole.choices[0].logprobs.tokens) == whole.choices[0].text


def test_modules_take_from_what_was_read_for_others(client, modules):
    long = [{"role": "user", "content": "Tell me of rivers. " * 30}]
    before = modules.shared.num_read
    for model in ("source", "identity", "source"):
        usage = client.chat.completions.create(model=model, messages=long, max_tokens=1).usage
    assert modules.shared.num_read - before <= usage.prompt_tokens
