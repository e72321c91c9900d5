"""`llm-modules chat` as its user meets it: in a real pseudo-terminal, and at the end of a pipe."""

import json
import os
import stat
import sys

import pytest
from typer.testing import CliRunner

from llm_modules.cli import app
from llm_modules.errors import UserError
from llm_modules.files import state_folder
from llm_modules.typed import joined_lines
from tests.conftest import endless_generator_config, tiny_pair
from tests.screen import Terminal

COMMAND = [sys.executable, "-m", "llm_modules.cli", "chat"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


@pytest.fixture(scope="module")
def folders(endless_source, tmp_path_factory):
    """Two pairs on one source, neither of which ends of itself."""
    base = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        pair = tiny_pair(seed, source=str(endless_source), generator=endless_generator_config())
        pair.save_pretrained(base / name / "model")
    return [base / name / "model" for name in ("one", "two")]


def piped(folders, text, *options):
    """Run in this process, with `text` as standard input."""
    return CliRunner().invoke(app, ["chat", *map(str, folders), *map(str, options)], input=text)


def test_terminal_answers_obeys_and_survives_ctrl_c(folders, tmp_path):
    command = [*COMMAND, *map(str, folders), "--max-new-tokens", "4"]
    with Terminal(command, columns=110, rows=60, env=os.environ | {"HOME": str(tmp_path)}) as terminal:
        terminal.see(r"Here: one \(answers\), two, source\.(.|\n)*^one>$")
        terminal.type("1 + 2 ?\r")
        terminal.see(r"^one> 1 \+ 2 \?\n\S+ \S+(.|\n)*4 tokens, [\d.]+ tokens/s, first after [\d.]+ s\n\none>$")

        terminal.type("/model two\r")
        terminal.see(r"Here: one, two \(answers\), source\.\n\ntwo>$")
        terminal.type("/compare 1 ?\r")
        terminal.see(r"^one +two +source *\n(.|\n)*(4 tokens, .*){3}\n(.+\n)*\ntwo>$")

        terminal.type("/params max_new_tokens=100000\r")
        terminal.see(r"^max_new_tokens=100000 temperature=0.0")
        terminal.type("what\x1b\rmore ?\r")  # Alt-Enter between the two
        terminal.see(r"^two> what\n *·? ?more \?\n\S+ \S+ \S+")
        terminal.type("\x03")
        terminal.see(r"\(stopped\)\n\ntwo>$")
        terminal.type("/compare 1\r")
        terminal.see(r"/compare 1\n.*\n\S+ \S+ \S+")
        terminal.type("\x03")
        terminal.see(r"/compare 1\n(.|\n)*\(stopped\)\n\ntwo>$")
        terminal.type("never sent\x03")
        terminal.see(r"Ctrl-C stops an answer\.\n\ntwo>$")

        file = tmp_path / "talk.jsonl"
        terminal.type(f"/save {file}\r")
        terminal.see(r"\(added to")
        (line,) = file.read_text().splitlines()
        assert [turn["content"] for turn in json.loads(line)["messages"][::2]] == ["1 + 2 ?", "what\nmore ?"]

        terminal.type("/reset\r")
        terminal.see(r"\(forgotten\)")
        terminal.type("/sistem x\r")
        terminal.see("error: /sistem is no command; the nearest is /system")
        terminal.type("\x1b[A\x1b[A\x1b[A")  # up to what was asked before
        terminal.see(r"^two> /save ")
        terminal.type("\x03\x04")  # clear it; leave
        assert terminal.leaves() == 0
    history = state_folder() / "chat-history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600 and "+what\n+more ?\n" in history.read_text()


def test_pipe_gets_answers_alone_and_remarks_stand_on_the_other_stream(folders):
    told = "1 ?\n/system x y\n/system\n1 \\\n?\n/reset\n1 ?\n/model\n/help\n/params seed=3\n/exit\nnever asked\n"
    result = piped(folders, told, "--max-new-tokens", 3)
    assert result.exit_code == 0, result.output
    first, _, third = result.stdout.splitlines()
    assert len(first.split()) == 3 and first == third
    for remark in (
        "Here: one (answers), two, source.\n/help lists",
        "(system message set)",
        "(no system message)",
        "(forgotten)",
        "3 tokens, ",
        "/compare QUESTION",
        "top_p=0.98 seed=3",
    ):
        assert remark in result.stderr
    assert "\x1b" not in result.output


def test_what_a_command_cannot_do_is_said_and_the_next_line_is_answered(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        "/model three",
        "/compare",
        "/save",
        "/save x.txt",
        "/params top_p=7",
        "/params heat=1",
        "/quit",
        "1 ?",
        "/save",
    ]
    result = piped(folders[:1], "\n".join(lines), "--max-new-tokens", 3)
    for error in (
        "error: 'three' is not here; choose one of: one, source",
        "error: there is nothing to compare; write /compare QUESTION",
        "error: there is nothing to save yet; ask something first",
        "error: top_p=7.0 is not possible; choose between 0 and 1",
        "error: 'heat' is no parameter; the nearest is",
        "error: /quit is no command; the nearest is /exit",
    ):
        assert error in result.stderr
    assert len(result.stdout.split()) == 3 and result.exit_code == 0
    assert (tmp_path / "chat.jsonl").read_text().count("\n") == 1


def test_input_that_is_no_text_is_one_line(folders):
    result = piped(folders[:1], b"1 ?\n\xff\xfe\n", "--max-new-tokens", 2)
    assert result.exit_code == 2 and "error: standard input is no text (" in result.stderr
    with pytest.raises(UserError, match="standard input is no text"):
        list(joined_lines(["\udcff"]))  # what some locales make of such bytes


def test_backslash_joins_lines_and_the_end_of_the_input_ends_a_question():
    assert list(joined_lines(["a\\\n", "b\n", "\n", "c\\\n"])) == ["a\nb", "", "c"]


def test_answer_too_long_for_one_model_is_told_beside_the_others(folders, endless_source, tmp_path):
    tiny_pair(source=str(endless_source)).save_pretrained(tmp_path / "short" / "model")  # 128 positions
    result = piped([tmp_path / "short" / "model", *folders], "/compare 1 ?\n", "--max-new-tokens", 150)
    assert "error: prompt and max_new_tokens need" in result.stderr
    assert result.stdout.startswith("short:\n\none:\n") and result.exit_code == 0
