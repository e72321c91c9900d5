"""Answers are drawn as they are written; nothing in them can steer the terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llm_modules.shown import Screen, clean, formatted
from llm_modules.tasks import stratos

ANSWER = stratos.render("7/4 = 1\n7-4 = 3", "The remainder is **3**.")


def console(width=60, height=12, **kwargs):
    return Console(file=io.StringIO(), width=width, height=height, **kwargs)


def terminal(**kwargs):
    return console(force_terminal=True, color_system="truecolor", legacy_windows=False, _environ={}, **kwargs)


def drawn(answer, **kwargs):
    on = terminal(**kwargs)
    on.print(formatted(answer))
    return on.file.getvalue()


def plain(answer):
    on = console(width=200)
    on.print(formatted(answer))
    return "\n".join(line.rstrip() for line in on.file.getvalue().rstrip().split("\n"))


def test_thought_is_dim_and_stands_apart_from_the_solution():
    said = drawn(ANSWER)
    assert "\x1b[2m7/4 = 1" in said and "\x1b[2m7-4 = 3" in said
    assert "The remainder is \x1b[1m3\x1b[0m." in said
    assert "<|" not in said
    assert plain(ANSWER) == "7/4 = 1\n7-4 = 3\n\nThe remainder is 3."


def test_line_breaks_tags_and_links_stay_what_was_written():
    assert plain("one\ntwo") == "one\ntwo"
    assert plain("a <b>bold</b> <script>x</script>") == "a <b>bold</b> <script>x</script>"
    assert plain("<div>\nx\n</div>") == "<div>\nx\n</div>"
    assert plain("[safe](http://elsewhere.example)") == "safe (http://elsewhere.example)"
    assert "\x1b]8" not in drawn("[safe](http://elsewhere.example)")


@pytest.mark.parametrize("answer", ["\x1b[2J", "\x1b]0;title\x07", "\x9b2J", "a\rb", "\x7f\x08", "`\x1b[1A`"])
def test_no_answer_steers_the_terminal(answer):
    assert not {"\x07", "\x08", "\r", "\x7f", "\x9b"} & set(plain(answer))
    assert "\x1b" not in plain(answer) and "\ufffd" in plain(answer)
    assert clean(answer) == clean(clean(answer))


@given(st.text(max_size=200), st.integers(0, 200))
def test_any_text_can_be_drawn_however_far_it_is_written(text, size):
    assert not any(ord(sign) < 32 and sign != "\n" for sign in plain(text[:size]))


@given(st.integers(0, len(ANSWER)))
def test_no_tag_is_ever_seen_half_written(size):
    assert "<|" not in plain(ANSWER[:size])


def test_what_stands_outside_the_sections_is_kept():
    assert stratos.sections("a <|end_of_thought|> b <|begin_of_solution|>c") == [
        ("", "a"),
        ("", "b"),
        ("solution", "c"),
    ]
    assert stratos.sections("1 < 2 <") == [("", "1 < 2 <")]


def streamed(screen, text):
    screen.stream(piece for piece in text)
    return screen.answers.file.getvalue()


def test_pipe_gets_the_bare_text_and_remarks_go_elsewhere():
    screen = Screen(console(width=10), remarks=console())
    screen.remark("12 tokens/s")
    assert streamed(screen, ANSWER) == ANSWER + "\n"
    assert screen.remarks.file.getvalue() == "12 tokens/s\n"


def test_answer_longer_than_the_screen_is_whole_in_the_end():
    on = terminal(height=5)
    text = "\n".join(f"line {number}" for number in range(40))
    said = streamed(Screen(on, remarks=on), text)
    last = said.rpartition("\x1b[2K")[2]
    assert [line.strip() for line in last.splitlines()][:40] == text.splitlines()


def test_answer_that_breaks_off_keeps_what_was_written():
    on = terminal()

    def pieces():
        yield "one "
        yield "two"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Screen(on, remarks=on).stream(pieces())
    assert "one two" in on.file.getvalue()


@pytest.mark.parametrize(("width", "is_beside"), [(80, True), (40, False)])
def test_answers_stand_side_by_side_where_there_is_room(width, is_beside):
    on = terminal(width=width)
    Screen(on, remarks=on).beside({"a": iter_(["left"]), "b": iter_(["right"])}, remark=lambda name: f"({name} done)")
    last = on.file.getvalue().rpartition("\x1b[2K")[2]
    assert any("left" in line and "right" in line for line in last.splitlines()) == is_beside
    assert "(a done)" in last and "(b done)" in last


def test_pipe_gets_compared_answers_one_below_the_other():
    screen = Screen(console(), remarks=console())
    screen.beside({"a": iter_(["le", "ft"]), "b": iter_(["right"])}, remark=str)
    assert screen.answers.file.getvalue() == "a:\nleft\nb:\nright\n"


def iter_(pieces):
    yield from pieces
