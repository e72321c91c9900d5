"""OpenAI's own client, against a real server with tiny modules: every parameter, streamed and not."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest

from llm_modules.serving.limits import Limits
from llm_modules.serving.speakers import SourceSpeaker
from tests.conftest import tiny_pair
from tests.test_chat import conversation
from tests.tiny_server import KINDS, metrics_of, serving, tiny_modules

ASK = [{"role": "user", "content": "1 + 2 ?"}]
EVERYBODY = ("source", *KINDS, "alone")


@pytest.fixture(scope="module")
def modules():
    return tiny_modules(alone=True)


@pytest.fixture(scope="module")
def client(modules):
    with serving(modules, limits=Limits(max_new_tokens=60, max_prompt_tokens=100)) as client:
        yield client


def chat(client, model="rotary", messages=ASK, **others):
    return client.chat.completions.create(model=model, messages=messages, **({"max_tokens": 8} | others))


def text_of(chunks, index=0):
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(delta.content or "" for delta in deltas)


def test_modules_are_listed_with_their_parent(client):
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == set(EVERYBODY)
    assert {name for name, model in listed.items() if model.parent == "source"} == set(KINDS)
    assert client.models.retrieve("causal").owned_by == "llm-modules"


@pytest.mark.parametrize("model", EVERYBODY)
def test_answer_is_that_of_the_library_streamed_and_not(client, modules, model):
    whole = chat(client, model)
    chunks = list(chat(client, model, stream=True))
    choice = whole.choices[0]
    assert (whole.model, whole.object, choice.message.role) == (model, "chat.completion", "assistant")
    assert text_of(chunks) == choice.message.content
    if modules.get(model).model is not None:
        talking = conversation(modules.get(model).model, max_new_tokens=8)
        assert "".join(talking.ask(ASK[0]["content"])) == choice.message.content


def test_stream_has_the_form_that_clients_wait_for(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    first, *middle, last, counted = chunks
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None and chunk.choices[0].finish_reason is None for chunk in middle)
    assert last.choices[0].finish_reason in ("stop", "length") and last.choices[0].delta.content is None
    assert counted.choices == [] and counted.usage.total_tokens > 0
    assert all(chunk.usage is None and chunk.id == first.id for chunk in chunks[:-1])
    assert first.object == "chat.completion.chunk"
    with client.chat.completions.with_streaming_response.create(
        model="rotary", messages=ASK, max_tokens=2, stream=True
    ) as raw:
        lines = list(raw.iter_lines())
        assert raw.headers["content-type"].startswith("text/event-stream")
    assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]"


def test_usage_counts_prompt_and_answers(client, modules):
    whole = chat(client, n=3)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.completion_tokens == 3 * chat(client).usage.completion_tokens


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_answer_has_at_most_so_many_tokens(client, name):
    whole = client.chat.completions.create(model="source", messages=ASK, **{name: 3})
    assert whole.usage.completion_tokens <= 3
    assert whole.choices[0].finish_reason == ("length" if whole.usage.completion_tokens == 3 else "stop")


def test_without_a_limit_an_answer_takes_the_room_there_is(client):
    whole = client.chat.completions.create(model="prompt", messages=ASK)
    assert whole.usage.completion_tokens <= 60


def test_seed_decides_what_is_sampled(client):
    said = [chat(client, "source", temperature=2.0, seed=seed).choices[0].message.content for seed in (1, 1, 2, 3)]
    assert said[0] == said[1] and len(set(said)) > 2
    unseeded = {chat(client, "source", temperature=2.0).choices[0].message.content for _ in range(4)}
    assert len(unseeded) > 1


def test_several_answers_are_told_apart(client):
    whole = chat(client, "source", n=4, temperature=2.0, seed=5)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3] and len(set(texts)) > 1
    chunks = list(chat(client, "source", n=4, temperature=2.0, seed=5, stream=True))
    assert [text_of(chunks, index) for index in range(4)] == texts
    ends = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(ends) == [0, 1, 2, 3]


def test_narrow_choices_are_greedy(client):
    greedy = chat(client, "source").choices[0].message.content
    assert chat(client, "source", temperature=1.0, top_p=1e-6).choices[0].message.content == greedy
    assert chat(client, "source", temperature=1.0, top_p=0).choices[0].message.content == greedy
    assert chat(client, "source", temperature=1.0, extra_body={"top_k": 1}).choices[0].message.content == greedy
    assert chat(client, "source", temperature=0).choices[0].message.content == greedy


def test_stop_ends_the_answer_before_it(client):
    whole = chat(client, "source", max_tokens=30).choices[0].message.content
    words = whole.split(" ")
    stop = " ".join(words[4:6])
    for given in (stop, [stop], ["never said", stop]):
        cut = chat(client, "source", max_tokens=30, stop=given).choices[0]
        assert cut.finish_reason == "stop"
        assert cut.message.content == whole[: whole.index(stop)]
    chunks = list(chat(client, "source", max_tokens=30, stop=stop, stream=True))
    assert text_of(chunks) == whole[: whole.index(stop)]


def test_logprobs_are_told_for_each_token(client):
    whole = chat(client, "source", logprobs=True, top_logprobs=3)
    tokens = whole.choices[0].logprobs.content
    assert len(tokens) == whole.usage.completion_tokens - (whole.choices[0].finish_reason == "stop")
    for token in tokens:
        assert token.logprob == token.top_logprobs[0].logprob <= 0  # greedy
        assert len(token.top_logprobs) == 3 and bytes(token.bytes).decode() == token.token
    chunks = list(chat(client, "source", logprobs=True, stream=True))
    streamed = [
        one for chunk in chunks for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content
    ]
    assert [one.logprob for one in streamed] == pytest.approx([token.logprob for token in tokens], abs=1e-4)
    assert all(one.top_logprobs == [] for one in streamed)


def test_text_is_continued_as_it_stands(client):
    arguments = {"model": "source", "prompt": "1 + 2 =", "max_tokens": 6}
    whole = client.completions.create(**arguments, logprobs=2, n=2)
    assert whole.object == "text_completion" and len(whole.choices) == 2
    told = whole.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) > 0
    assert all(len(others) <= 2 for others in told.top_logprobs)
    chunks = list(client.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    ids = client.completions.create(**(arguments | {"prompt": [5, 6, 7]}))
    assert ids.usage.prompt_tokens == 3


def test_messages_come_in_parts_and_roles(client):
    turns = [
        {"role": "developer", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "2 ?"}]},
    ]
    plain = [{"role": "system", "content": "x"}, {"role": "user", "content": "1 + 2 ?"}]
    assert chat(client, messages=turns).choices[0].message == chat(client, messages=plain).choices[0].message


def test_unknown_fields_are_ignored(client):
    known = chat(client).choices[0].message
    fields = {"frequency_penalty": 0.5, "user": "me", "tools": [], "metadata": {"a": "b"}, "chat_id": 1}
    assert chat(client, extra_body=fields).choices[0].message == known


def test_client_that_leaves_half_way_makes_room_and_is_logged_with_what_it_got(client, monkeypatch, caplog):
    caplog.set_level("INFO", logger="llm_modules.serving.access")
    step = SourceSpeaker.step

    def slow_step(*given):
        time.sleep(0.05)
        return step(*given)

    monkeypatch.setattr(SourceSpeaker, "step", slow_step)
    endless = {"model": "source", "messages": ASK, "temperature": 2.0, "max_tokens": 60, "seed": 0}
    stream = client.chat.completions.create(**endless, stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).chat.completions.create(**endless)
    for _ in range(200):
        if "llm_modules_writing_answers 0.0" in metrics_of(client):
            break
        time.sleep(0.02)
    else:
        raise AssertionError(metrics_of(client))
    assert re.search(r"POST /v1/chat/completions 200 .* written=[1-9]", caplog.text)


def test_metrics_count_and_know_no_text(client):
    chat(client, "causal", [{"role": "user", "content": "q u x"}])
    told = metrics_of(client)
    assert 'llm_modules_written_tokens_total{model="causal"}' in told
    assert 'llm_modules_responses_total{path="/v1/chat/completions",status="200"}' in told
    assert "llm_modules_source_read_tokens" in told and "q u x" not in told


# -- as a program ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, talking_source):
    tiny_pair(source=str(talking_source)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def program(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "llm_modules.cli", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_program_serves_with_a_key_logs_no_prompts_and_finishes_what_it_writes_when_told_to_stop(folder):
    lines = []
    with program(folder, "--port", 0, LLM_MODULES_API_KEY="open sesame") as running:
        for line in running.stdout:
            lines.append(line)
            if " at http" in line:
                break
        reader = threading.Thread(target=lambda: lines.extend(running.stdout))
        reader.start()
        address = lines[-1].split(" at ")[1].partition(",")[0]
        with openai.OpenAI(base_url=address, api_key="open sesame", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="open sesam").models.list()
            secret = [{"role": "user", "content": "z z top"}]
            arguments = {"model": "tiny", "messages": secret, "temperature": 2.0, "max_tokens": 40, "stream": True}
            stream = client.chat.completions.create(**arguments, extra_query={"q": "secret"})
            chunks = [next(iter(stream))]
            running.send_signal(signal.SIGTERM)
            chunks += stream
        assert chunks[-1].choices[0].finish_reason is not None
        reader.join(120)
    log = "".join(lines)
    assert "POST /v1/chat/completions 200" in log and "model=tiny prompt=" in log
    assert "z z" not in log and "secret" not in log and "sesame" not in log and "Traceback" not in log


def test_second_server_on_a_port_is_refused_before_it_loads_anything(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with program(folder / "nowhere", "--port", port) as refused:
            said, _ = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in said and "choose another --host or --port" in said
