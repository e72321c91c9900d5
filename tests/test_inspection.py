"""Pages and pictures hold every token, and no token can break them."""

import re
from html import unescape

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_modules import UserError
from llm_modules.inspection import (
    MOST_COLUMNS,
    Inspection,
    inspect_folder,
    load_pair,
    spell,
    write_page,
    write_pictures,
)
from llm_modules.watching import Watched
from tests.conftest import randomise_, tiny_pair, tiny_source_config, tiny_tokenizer

HOSTILE = ["<script>", "$x_1$", "&amp;", '"', "{{ 7 * 7 }}", "文", "</s>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a tiny pair that writes on and on."""
    torch.manual_seed(5)
    source = tmp_path_factory.mktemp("source")
    AutoModelForCausalLM.from_config(tiny_source_config()).save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    model = randomise_(tiny_pair(source=str(source)), scale=0.1)
    model.tokenizer = tiny_tokenizer()
    model.save_pretrained(source.parent / "model")
    return source.parent / "model"


def drawn_at_random(read, written, layers=2, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    attention = torch.rand(layers, len(written), len(read), generator=numbers)
    gates = torch.rand(layers, len(written), generator=numbers)
    return Inspection("<b>why</b>?", read, written, Watched(gates, attention / attention.sum(-1, keepdim=True)))


def headings(page):
    return [unescape(name) for name in re.findall(r'<th scope="(?:col|row)">(.*?)</th>', page)]


def tinted(page):
    """Tokens of the answer, as often as there are layers."""
    return [unescape(token) for token in re.findall(r"<span[^>]*>(.*?)</span>", page)]


def inspect_into(output, folder, **changes):
    fields = {"prompt": "1 + 2 ?", "system": None, "answer": None, "max_new_tokens": 5} | changes
    return inspect_folder(folder, output=output, **fields)


def test_answer_that_is_written_is_shown_token_by_token(folder, tmp_path, capsys):
    files = inspect_into(tmp_path / "new" / "out", folder)
    assert [file.name for file in files] == ["inspect.html", "gates.png", "attention-1.png", "attention-2.png"]
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files[1:])
    written = capsys.readouterr().out.split()
    page = files[0].read_text()
    names = headings(page)
    assert tinted(page)[:5] == names[-5:] and written == [name for name in names[-5:] if name[0] != "<"]
    for token in ("User", "1", "+", "2", "?", "Assistant"):
        assert token in names


def test_answer_that_is_given_is_watched_instead_of_a_new_one(folder, tmp_path, capsys):
    page = inspect_into(tmp_path, folder, answer="= 3", system="a b")[0].read_text()
    assert capsys.readouterr().out == ""
    assert tinted(page)[:3] == ["=", "3", "</s>"] and {"System", "a", "b"} <= set(headings(page))
    assert ">&lt;/s&gt;</span>" in page and "</s>" not in page


def test_no_token_is_markup(tmp_path):
    page = write_page(drawn_at_random(HOSTILE, HOSTILE), tmp_path / "inspect.html", model="a<b>").read_text()
    assert "<script" not in page and "<b>" not in page and "{{ 7 * 7 }}" in unescape(page)
    assert tinted(page)[: len(HOSTILE)] == headings(page)[: len(HOSTILE)] == HOSTILE
    shares = [int(share) for share in re.findall(r'style="--w:(\d+)"', page)]
    assert len(shares) == 2 * (7 + 7 * 7) and all(0 <= share <= 100 for share in shares) and 100 in shares
    assert "http-equiv" in page and "src=" not in page and "href=" not in page


def test_pictures_take_any_token(tmp_path):
    assert len(write_pictures(drawn_at_random(HOSTILE, HOSTILE), tmp_path)) == 3


def test_of_too_many_tokens_those_that_are_read_most_are_shown_in_their_order(tmp_path):
    read = [f"t{number}" for number in range(MOST_COLUMNS + 30)]
    found = drawn_at_random(read, ["a", "b"])
    assert len(found.shown) == MOST_COLUMNS and found.shown == sorted(found.shown)
    left_out = set(range(len(read))) - set(found.shown)
    peaks = found.watched.attention.amax((0, 1))
    assert peaks[list(left_out)].max() <= peaks[found.shown].min()
    assert "without 30 that are read" in write_page(found, tmp_path / "page.html", model="m").read_text()


def test_blanks_are_seen_and_what_is_no_text_has_its_name():
    class Blanks:
        def decode(self, ids):
            return {1: " the", 2: "\n", 3: "\x1b", 4: ""}[ids[0]]

        def convert_ids_to_tokens(self, ids):
            return [None if token == 4 else f"<{token}>" for token in ids]

    assert spell([1, 2, 3, 4], Blanks()) == ["␣the", "↵", "<3>", "<4>"]


def test_what_cannot_be_inspected_is_said(folder, tmp_path):
    with pytest.raises(UserError, match="the prompt is empty"):
        inspect_into(tmp_path, folder, prompt=" ")
    with pytest.raises(UserError, match="tokens are more than the generator's 128 positions"):
        inspect_into(tmp_path, folder, max_new_tokens=500)
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match="cannot be a folder"):
        inspect_into(tmp_path / "taken", folder)


def test_model_without_a_bridge_to_look_into_is_refused(tmp_path):
    AutoModelForCausalLM.from_config(tiny_source_config()).save_pretrained(tmp_path / "alone")
    tiny_tokenizer().save_pretrained(tmp_path / "alone")
    with pytest.raises(UserError, match="holds a language model without a source"):
        load_pair(tmp_path / "alone")
    tiny_pair(source=str(tmp_path / "alone"), num_bridge_layers=0).save_pretrained(tmp_path / "layerless")
    with pytest.raises(UserError, match="has no cross-attention layer"):
        load_pair(tmp_path / "layerless")
