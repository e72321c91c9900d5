"""`POST /v1/inspect` tells what the library measures, whatever else is being written."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import torch

from llm_modules.data.templates import Example, encode_prompt
from llm_modules.inspection import inspect_answer
from tests.page.visits import QUESTION, answered, user


def inspected(served, **changes):
    request = {"model": "adder", "messages": [user(QUESTION)], "max_tokens": 7} | changes
    return httpx2.post(f"{served}/v1/inspect", json=request, timeout=60)


def refusal(served, **changes):
    response = inspected(served, **changes)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
    return response.json()["error"]["message"]


def id_of(token, tokenizer):
    """The tiny source has more ids than words: those beyond are spelled as numbers."""
    number = re.fullmatch(r"<(\d+)>", token)
    return int(number[1]) if number else tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize(("name", "layers"), [("adder", 2), ("rereader", 1)])
def test_what_is_told_is_what_the_library_measures(served, modules, name, layers):
    found = inspected(served, model=name).json()
    assert found["object"] == "inspection" and found["model"] == name and found["finish_reason"] == "length"
    model, tokenizer = modules.get(name).model, modules.get(name).tokenizer
    prompt_ids = encode_prompt([user(QUESTION)], tokenizer)
    written_ids = [id_of(token, tokenizer) for token in found["written"]]
    expected = inspect_answer(model, Example(prompt_ids, written_ids), tokenizer, question="")
    assert found["read"] == expected.read and found["written"] == expected.written
    gates, attention = torch.tensor(found["gates"]), torch.tensor(found["attention"])
    num_read = len(prompt_ids) + (6 if name == "rereader" else 0)
    assert gates.shape == (layers, 7) and attention.shape == (layers, 7, num_read)
    torch.testing.assert_close(gates, expected.watched.gates, atol=1e-4, rtol=0)
    torch.testing.assert_close(attention, expected.watched.attention, atol=1e-4, rtol=0)
    assert tokenizer.decode(written_ids) == answered(served, name, [user(QUESTION)], max_tokens=7)


def test_answer_that_ends_has_the_end_among_its_tokens(served):
    found = inspected(served, model="quitter").json()
    assert found["written"] == ["</s>"] and found["finish_reason"] == "stop"
    assert torch.tensor(found["attention"]).sum().item() == pytest.approx(1, abs=1e-2)


def test_inspecting_and_answering_do_not_touch_each_other(served):
    calm, alone = inspected(served).json(), answered(served, "adder", [user("a b")], max_tokens=200)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(answered, served, "adder", [user("a b")], max_tokens=200) for _ in range(3)]
        looks = [pool.submit(inspected, served) for _ in range(3)]
        assert {answer.result() for answer in answers} == {alone}
        for look in looks:
            found = look.result().json()
            assert found["written"] == calm["written"]
            torch.testing.assert_close(
                torch.tensor(found["attention"]), torch.tensor(calm["attention"]), atol=2e-4, rtol=0
            )


def test_what_cannot_be_inspected_is_refused(served):
    for name in ("source", "alone"):
        told = f"model={name!r} reads no source, so there is no bridge to look into; choose one of "
        assert refusal(served, model=name) == f"{told}adder, rereader, quitter"
    many = [user("a " * 504)]
    assert "weights of attention, more than the 1000000" in refusal(served, messages=many, max_tokens=1000)
    assert "max_tokens" in refusal(served, max_tokens=0)
    assert "the prompt is empty" in refusal(served, messages=[user(" ")])
    assert "messages" in refusal(served, messages=[])
    assert inspected(served, model="nobody").status_code == 404
