"""A pair that lives by its knowledge is told from one that does not, and the report says so."""

import json
import random
import re
from html.parser import HTMLParser

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_modules import UserError
from llm_modules.checksums import read_json
from llm_modules.controls import all_controls, with_zeroed_knowledge
from llm_modules.data.templates import encode
from llm_modules.probe import Questions, measure, probe, response_losses
from llm_modules.probe_report import sentences, summary, tables
from tests.conftest import tiny_generator_config, tiny_pair, tiny_source_config, tiny_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def echoes():
    """The answer is the question's letter."""
    return [turns(f"{letter} ?", letter) for letter in LETTERS]


def unrelated(seed=1):
    """The answer has nothing to do with the question: a letter and the one after it."""
    drawn = random.Random(seed)
    return [
        turns(f"{letter} ?", f"{LETTERS[start]} {LETTERS[start + 1]}")
        for letter in LETTERS
        for start in [drawn.randrange(25)]
    ]


def train_(model, conversations, *, steps, doubted=False):
    """Train on all of them at once; in doubt, every other step without knowledge."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    tokenizer, silent = tiny_tokenizer(), with_zeroed_knowledge(model)
    for step in range(steps):
        data = conversations(step) if callable(conversations) else conversations
        examples = [encode(each, tokenizer) for each in data]
        ids = torch.tensor([example.input_ids for example in examples])
        is_prompt = (torch.arange(ids.shape[1]) < len(examples[0].prompt_ids)).expand_as(ids)
        chosen = silent if doubted and step % 2 else model
        chosen(ids, labels=ids.masked_fill(is_prompt, -100), prompt_mask=is_prompt).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder of a tiny stored source with a tokenizer."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("source")
    AutoModelForCausalLM.from_config(tiny_source_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def pair_on(source, **choices):
    generator = tiny_generator_config(num_layers=1, attention_types=[[["global"], 1]])
    return tiny_pair(source=str(source), generator=generator, **choices)


@pytest.fixture(scope="module")
def knowing(source):
    """A pair whose answers are known from the question alone."""
    return train_(pair_on(source, taps=[0, -1]), echoes(), steps=120)


@pytest.fixture(scope="module")
def ignorant(source):
    """A pair whose answers nobody can know from the question; it learned to do without."""
    return train_(pair_on(source), unrelated, steps=120, doubted=True)


@pytest.fixture(scope="module")
def knowing_folder(knowing, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "model"
    knowing.tokenizer = tiny_tokenizer()
    knowing.save_pretrained(folder)
    return folder


@pytest.fixture
def records(tmp_path):
    """A file of questions, one of them with markup in it."""
    path = tmp_path / "held-out.jsonl"
    hostile = turns("<script>alert(1)</script> | `x` ?", "a")
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in [*echoes()[:6], hostile]))
    return path


def measured(model, conversations, seed=0):
    tokenizer = tiny_tokenizer()
    examples = [encode(each, tokenizer) for each in conversations]
    asked = Questions("letters", [each[0]["content"] for each in conversations], examples)
    found = measure(all_controls(model, examples, seed=seed), asked, tokenizer, seed=seed)
    return found, {row["name"]: row for row in found["controls"]}


def test_pair_that_lives_by_its_knowledge_loses_without_it(knowing):
    found, rows = measured(knowing, echoes())
    assert rows["as trained"]["loss_nats"]["value"] < 0.2
    for name in ("zeros", "noise", "another prompt", "untrained source"):
        low, high = rows[name]["more_nats"]["interval"]
        assert 0.5 < low <= rows[name]["more_nats"]["value"] <= high, name
    assert sum(found["taps"].values()) == pytest.approx(1) and list(found["taps"]) == ["0", "3"]
    assert not found["leak"]["leaks"]
    for gate in found["gates"]:
        assert 0 < gate["interval"][0] <= gate["value"] <= gate["interval"][1] < 1
    assert sum(token["share"]["value"] for token in found["tokens"]) <= 1 + 1e-6
    assert found["tokens"][0]["share"]["value"] >= found["tokens"][-1]["share"]["value"]


def test_pair_that_learned_without_knowledge_does_not_miss_it(ignorant):
    _, rows = measured(ignorant, unrelated(seed=999))
    for name in ("zeros", "another prompt"):
        assert abs(rows[name]["more_nats"]["value"]) < 0.15, name
    assert rows["as trained"]["more_nats"] == {"value": 0.0, "interval": [0.0, 0.0]}


@torch.no_grad()
def test_losses_are_those_of_the_forward_whatever_shares_a_batch(knowing):
    examples = [encode(each, tiny_tokenizer()) for each in [turns("a b c ?", "d e"), *echoes()[:5], echoes()[0]]]
    control, *_ = all_controls(knowing, examples, seed=0)
    found = response_losses([control], examples)["as trained"]
    for example, loss in zip(examples, found, strict=True):
        ids = torch.tensor([example.input_ids])
        is_prompt = (torch.arange(ids.shape[1]) < len(example.prompt_ids))[None]
        alone = knowing(ids, labels=ids.masked_fill(is_prompt, -100), prompt_mask=is_prompt).loss
        assert loss == pytest.approx(alone.item() * len(example.response_ids), abs=1e-3)


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_probe_of_a_file_writes_figures_report_and_pictures(knowing_folder, records, tmp_path, capsys):
    out = tmp_path / "out"
    options = {"task": None, "data": str(records), "num": 7, "seed": 0, "max_new_tokens": 4}
    results = probe(knowing_folder, output=out, **options)
    assert sorted(path.name for path in out.iterdir()) == [
        "attention-1.png", "attention-2.png", "controls.png", "gates.png", "probe.html", "probe.json", "probe.md",
    ]  # fmt: skip
    assert read_json(out / "probe.json") == json.loads(json.dumps(results))
    assert results["n"] == 7 and "exact_match" not in results["controls"][0]
    assert summary(results) in capsys.readouterr().out
    page = Tags((out / "probe.html").read_text())
    assert "script" not in page.tags and page.tags.count("img") == 4
    assert all(sentence in page.text for sentence in sentences(results))
    assert re.search(r"^\| zeros \| ", (out / "probe.md").read_text(), re.MULTILINE)
    again = probe(knowing_folder, output=tmp_path / "again", **options)
    assert again == results


def test_probe_of_a_task_judges_answers_under_every_control(source, tmp_path):
    generator = tiny_source_config(hidden_size=12, num_hidden_layers=1, bos_token_id=None)  # without a position table
    tiny_pair(source=str(source), generator=generator).save_pretrained(tmp_path / "model")
    results = probe(
        tmp_path / "model", task="arithmetic", data=None, num=7, seed=0, max_new_tokens=3, output=tmp_path / "out"
    )
    assert all(row["exact_match"]["n"] == 7 for row in results["controls"])
    assert results["answers_to_other"]["n"] == 7 and results["answers_to_other"]["interval"][0] == 0
    assert tables(results)[0].header[-1] == "exact match"
    assert "right for that other prompt" in summary(results)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.3, "needs what is taken"), (-0.1, 0.3, "no difference is shown"), (-0.3, -0.1, "does better without")],
)
def test_verdict_follows_the_interval(low, high, verdict):
    row = {"name": "zeros", "meaning": "m", "more_nats": {"value": 0.2, "interval": [low, high]}}
    leak = {"leaks": True, "largest_move": 2.0, "num_positions": 3, "gained_nats": {"value": 1, "interval": [0, 2]}}
    said = sentences({"controls": [row, row], "leak": leak})
    assert verdict in said[0] and "Leak test: FAILED" in said[-1]


def test_what_cannot_be_probed_is_said(knowing_folder, records, tmp_path):
    options = {"seed": 0, "max_new_tokens": 4, "output": tmp_path / "out"}
    with pytest.raises(UserError, match="give --task or --data, and not both"):
        probe(knowing_folder, task="arithmetic", data=str(records), num=3, **options)
    same = tmp_path / "same.jsonl"
    same.write_text((json.dumps({"messages": turns("a ?", "b")}) + "\n") * 3)
    with pytest.raises(UserError, match="the same prompt or the same response"):
        probe(knowing_folder, task=None, data=str(same), num=3, **options)
    long = tmp_path / "long.jsonl"
    long.write_text((json.dumps({"messages": turns("a ?", "b " * 300)}) + "\n") * 3)
    with pytest.raises(UserError, match="holds 0 conversations to ask"):
        probe(knowing_folder, task=None, data=str(long), num=3, **options)
