"""Whatever a client sends, the answer is an error that says what to do, and the server goes on."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest

from llm_modules.serving.app import create_app
from llm_modules.serving.limits import Limits
from tests.conftest import tiny_pair
from tests.tiny_server import metrics_of, running, serving, tiny_modules

ASK = [{"role": "user", "content": "1"}]
LIMITS = Limits(max_new_tokens=50, max_prompt_tokens=40, max_body_bytes=100_000, timeout_s=20)
KEY = "open sesame"


@pytest.fixture(scope="module")
def modules():
    return tiny_modules(("prompt",))


@pytest.fixture(scope="module")
def client(modules):
    with serving(modules, limits=LIMITS, api_key=KEY, origins=["https://example.org"]) as client:
        yield client


def send(client, body, path="chat/completions", **headers):
    """Status and body of a raw request; the body of errors is checked to have OpenAI's shape."""
    content = body if isinstance(body, (bytes, str)) else json.dumps(body)
    sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | headers
    response = client._client.post(f"{client.base_url}{path}", content=content, headers=sent)
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        return response.status_code, response.json()["error"]["message"]
    return response.status_code, response.json()


def asked(**changes):
    return {"model": "prompt", "messages": ASK, "max_tokens": 2} | changes


BAD = {
    "no JSON": (b"{'model': 1", "the body is no JSON"),
    "no text": (b"\xff\xfe", "the body"),
    "nothing": (b"", "the body"),
    "a list": ([], "the body"),
    "no model": ({"messages": ASK}, "model: Field required"),
    "no messages": ({"model": "prompt"}, "messages: Field required"),
    "empty messages": (asked(messages=[]), "messages: "),
    "empty question": (asked(messages=[{"role": "user", "content": " "}]), "the prompt is empty"),
    "only a system message": (asked(messages=[{"role": "system", "content": "x"}]), "the prompt is empty"),
    "unknown role": (asked(messages=[{"role": "wizard", "content": "x"}]), "messages.0.role: "),
    "number as content": (asked(messages=[{"role": "user", "content": 5}]), "messages.0.content"),
    "an image": (
        asked(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
        "messages.0.content: a part of type 'image_url' is not understood, only text is",
    ),
    "part without a type": (asked(messages=[{"role": "user", "content": [{"text": "1"}]}]), "messages.0.content"),
    "word as number": (asked(max_tokens="many"), "max_tokens: "),
    "no tokens": (asked(max_tokens=0), "max_tokens: "),
    "negative tokens": (asked(max_tokens=-5), "max_tokens: "),
    "too many tokens": (asked(max_tokens=51), "max_tokens=51 is more than the 50 that this server writes"),
    "huge": (asked(max_tokens=10**30), "max_tokens: "),
    "cold": (asked(temperature=-0.1), "temperature: "),
    "hot": (asked(temperature=1e9), "temperature: "),
    "not a number": (
        b'{"model": "prompt", "messages": [{"role": "user", "content": "1"}], "temperature": NaN}',
        "temp",
    ),
    "negative top_p": (asked(top_p=-0.1), "top_p: "),
    "top_p over all": (asked(top_p=1.1), "top_p: "),
    "negative top_k": (asked(top_k=-1), "top_k: "),
    "no answers": (asked(n=0), "n: "),
    "many answers": (asked(n=1000), "n: "),
    "empty stop": (asked(stop=""), "stop"),
    "many stops": (asked(stop=list("abcde")), "stop"),
    "huge seed": (asked(seed=2**70), "seed: "),
    "many logprobs": (asked(logprobs=True, top_logprobs=21), "top_logprobs: "),
    "long prompt": (asked(messages=[{"role": "user", "content": "a " * 60}]), "more than this server's 40"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_refused_with_what_is_wrong(client, name):
    body, message = BAD[name]
    status, said = send(client, body)
    assert status == 400 and message in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [5, 10_000]}, "has id 10000, and the source's vocabulary ends at 66"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"stop": [""]}, "stop"),
    ],
    ids=str,
)
def test_bad_text_to_continue_is_refused(client, changes, message):
    status, said = send(client, {"model": "source", "prompt": "1", "max_tokens": 1} | changes, "completions")
    assert status == 400 and message in said


def test_prompt_and_answer_that_the_generator_has_no_room_for_are_refused(modules):
    with serving(modules) as client, pytest.raises(openai.BadRequestError, match="positions") as refused:
        client.chat.completions.create(model="prompt", messages=ASK, max_tokens=500)
    assert refused.value.code == "context_length_exceeded"


def test_unknown_module_is_not_found_and_the_known_ones_are_named(client):
    with pytest.raises(openai.NotFoundError, match="choose one of source, prompt") as refused:
        client.chat.completions.create(model="<script>", messages=ASK)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_unknown_path_and_method_are_told_in_the_same_shape(client):
    response = client._client.get(f"{client.base_url}nothing/here")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "there is no /v1/nothing/here here"
    assert send(client, {}, "models") == (405, "there is no POST /v1/models here")
    assert send(client, {}, "responses") == (405, "there is no POST /v1/responses here")


@pytest.mark.parametrize(
    "header", ["Bearer open sesam", "Bearer", "open sesame", "Basic b3BlbiBzZXNhbWU=", "", "Bearer ÿ"]
)
def test_wrong_key_is_refused(client, header):
    status, said = send(client, asked(), Authorization=header.encode("latin-1"))
    assert status == 401 and "the API key is missing or wrong" in said


def test_nothing_but_health_and_metrics_is_told_without_the_key(client):
    address = str(client.base_url).removesuffix("/v1/")
    statuses = {
        path: client._client.get(f"{address}{path}").status_code for path in ("/health", "/metrics", "/v1/models")
    }
    assert statuses == {"/health": 200, "/metrics": 200, "/v1/models": 401}


def test_pages_elsewhere_may_ask_only_where_they_are_named(client):
    def allowed(origin):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        response = client._client.options(f"{client.base_url}chat/completions", headers=headers)
        return response.headers.get("access-control-allow-origin")

    assert allowed("https://example.org") == "https://example.org"
    assert allowed("https://elsewhere.org") is None


@pytest.mark.parametrize("size", [100_001, 10_000_000])
def test_large_body_is_refused(client, size):
    body = json.dumps(asked(messages=[{"role": "user", "content": "a" * size}]))
    status, said = send(client, body)
    assert status == 413 and "larger than this server takes" in said


def test_large_body_that_does_not_tell_its_size_is_refused(client):
    def parts():
        for _ in range(200):
            yield b" " * 1000

    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    response = client._client.post(f"{client.base_url}chat/completions", content=parts(), headers=headers)
    assert response.status_code == 413


def test_server_answers_after_all_of_this(client):
    assert send(client, asked())[0] == 200


# -- too many, too slow ------------------------------------------------------------------------------------------------


def test_queue_that_is_full_is_told_with_when_to_try_again():
    modules = tiny_modules(("rotary",))
    modules.source.output_matrix[2] = 0  # answers do not end by themselves
    limits = Limits(max_at_once=1, max_waiting=1, max_new_tokens=1_000_000, timeout_s=20)
    arguments = {"model": "rotary", "messages": ASK, "stream": True}
    with serving(modules, limits=limits) as client, client.chat.completions.create(**arguments) as stream:
        next(iter(stream))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.chat.completions.create, **arguments)
            while "llm_modules_waiting_requests 1.0" not in metrics_of(client):
                time.sleep(0.01)
            with pytest.raises(openai.RateLimitError, match="try again") as refused:
                client.chat.completions.create(model="rotary", messages=ASK)
            assert refused.value.response.headers["retry-after"] == "1"
            stream.close()
            waiting.result().close()


def test_answer_that_takes_too_long_is_given_up_streamed_or_not():
    modules = tiny_modules(("rotary",))
    modules.source.output_matrix[2] = 0
    with serving(modules, limits=Limits(max_new_tokens=1_000_000, timeout_s=2)) as client:
        with pytest.raises(openai.InternalServerError, match="not finished in the time") as late:
            client.chat.completions.create(model="rotary", messages=ASK)
        assert late.value.status_code == 503
        with pytest.raises(openai.APIError, match="not finished in the time"):
            list(client.chat.completions.create(model="rotary", messages=ASK, stream=True))


def _talk(address, sent):
    """All that a server says to these bytes until it hangs up."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(sent)
        said = b""
        while more := connection.recv(10_000):
            said += more
    return said


def test_client_that_stalls_is_hung_up_on(modules):
    with running(create_app(modules, limits=Limits(stalled_s=1))) as address:
        start = time.monotonic()
        assert _talk(address, b"") == b""  # says nothing at all
        assert _talk(address, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n") == b""  # half a head
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        assert b" 408 " in _talk(address, head + b"Content-Length: 99\r\n\r\n{")  # half a body
        assert time.monotonic() - start < 30


def test_connection_that_is_in_use_is_kept(modules):
    with serving(modules, limits=Limits(stalled_s=0.6)) as client:
        address = str(client.base_url).removesuffix("v1/") + "health"
        streams = set()
        for _ in range(20):  # at most looks nothing is under way, and yet something was in between
            response = client._client.get(address)
            assert response.status_code == 200
            streams.add(response.extensions["network_stream"].get_extra_info("client_addr"))
            time.sleep(0.1)
        assert len(streams) == 1  # one connection all the time


def test_connection_that_is_idle_is_left_for_the_client_to_close(modules):
    with running(create_app(modules, limits=Limits(stalled_s=1))) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            for pause_s in (0, 6):  # OpenAI's client sends on connections that have been idle for 5 s
                time.sleep(pause_s)
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                said = b""
                while not said.endswith(b"}"):
                    said += connection.recv(1000)
                    assert said, "the server hung up"
        assert b" 200 " in said


def test_client_that_stops_reading_its_stream_is_given_up_and_the_others_go_on():
    modules = tiny_modules(("rotary",))
    modules.source.output_matrix[2] = 0  # answers do not end by themselves
    asked = {"model": "rotary", "messages": ASK, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
    body = json.dumps(asked).encode()
    limits = Limits(max_new_tokens=100_000, timeout_s=500, stalled_s=2)
    with serving(modules, limits=limits) as client, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((client.base_url.host, client.base_url.port))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(12) == b"HTTP/1.1 200"  # and from here on it reads nothing, and stays
        memory, start, answered = psutil.Process().memory_info().rss, time.monotonic(), 0
        while "llm_modules_writing_answers 0.0" not in metrics_of(client):
            assert (
                client.chat.completions.create(model="rotary", messages=ASK, max_tokens=3).usage.completion_tokens == 3
            )
            answered += 1
            assert time.monotonic() - start < 120
        assert answered > 1
        assert psutil.Process().memory_info().rss - memory < 100e6


# -- loading while it runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def allowed(tmp_path, talking_source):
    """A server that may load from a folder with one good module, a broken one, a link outside, and others outside."""
    inside, outside = tmp_path / "modules", tmp_path / "elsewhere"
    for folder in (inside / "good", inside / "broken", outside):
        tiny_pair(source=str(talking_source)).save_pretrained(folder)
    (inside / "broken" / "model.safetensors").write_bytes(b"nothing")
    (inside / "link").symlink_to(outside)
    from llm_modules.serving.modules import Modules

    with serving(Modules.open([f"first={outside}"], max_shared_tokens=99), loading_from=inside) as client:
        yield client


def test_modules_are_loaded_and_unloaded_while_it_runs(allowed):
    assert send(allowed, {"path": "good"}, "load_module")[1]["parent"] == "source"
    assert {model.id for model in allowed.models.list()} == {"source", "first", "good"}
    assert send(allowed, {"path": "good", "name": "again"}, "load_module")[1]["id"] == "again"
    assert allowed.chat.completions.create(model="again", messages=ASK, max_tokens=2).model == "again"
    assert send(allowed, {"name": "good"}, "unload_module")[1]["deleted"]
    with pytest.raises(openai.NotFoundError):
        allowed.chat.completions.create(model="good", messages=ASK)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"path": "../elsewhere"}, 403, "lies outside"),
        ({"path": "/etc"}, 403, "lies outside"),
        ({"path": "link"}, 403, "lies outside"),
        ({"path": "nowhere"}, 400, "is no folder"),
        ({"path": "broken"}, 400, "changed or damaged"),
        ({"path": "a\0b"}, 400, "zero byte"),
        ({"path": "."}, 400, "holds no config.json"),
        ({"path": "good", "name": "<b>"}, 400, "must be letters, digits"),
        ({"path": "good", "name": "source"}, 400, "'source' is taken"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_refused_and_the_rest_goes_on(allowed, body, status, message):
    found, said = send(allowed, body, "load_module")
    assert (found, message in said) == (status, True), said
    assert allowed.chat.completions.create(model="first", messages=ASK, max_tokens=2)


def test_source_and_strangers_are_not_unloaded(allowed):
    assert send(allowed, {"name": "source"}, "unload_module")[0] == 400
    assert send(allowed, {"name": "nobody"}, "unload_module")[0] == 404


def test_nothing_is_loaded_where_it_is_not_allowed(client):
    assert send(client, {"path": "good"}, "load_module")[0] == 403
    assert send(client, {"name": "prompt"}, "unload_module")[0] == 403
