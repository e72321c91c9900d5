"""A question is asked in a real browser, and its answer streams, stops, is asked again and is kept."""

import json
import re

from playwright.sync_api import expect

from tests.page.visits import LONG, QUESTION, SOLUTION, THOUGHT, answered, ask, force, open_parameters, user, words


def test_question_is_asked_and_the_answer_streams(visit, served):
    page = visit.open()
    ask(page, max_tokens=200, wait=False)
    answer = page.locator(".answer .prose").last
    expect(page.locator("#stop")).to_be_visible()
    expect(answer).not_to_be_empty()
    early = words(answer.inner_text())[:-1]  # the last may be half a word
    expect(page.locator("#ask")).to_be_visible()
    whole = words(answer.inner_text())
    assert len(early) < len(whole) and whole[: len(early)] == early
    assert whole == words(answered(served, "adder", [user(QUESTION)], max_tokens=200))
    note = r"200 tokens · [\d.]+ per second · first after [\d.]+ s · cut at 200 tokens: ask for more under Parameters"
    assert re.fullmatch(note, page.inner_text(".note"))
    expect(page.locator(".question")).to_have_text(QUESTION)
    expect(page.locator("#question")).to_have_value("")


def test_question_grows_with_its_text_where_style_sheets_cannot_say_so(visit):
    visit.page.add_init_script("CSS.supports = () => false")  # as in Firefox and Safari
    page = visit.open()
    question = page.locator("#question")
    question.evaluate("field => { field.style.fieldSizing = 'fixed' }")

    def height():
        return question.evaluate("field => field.clientHeight")

    one_line = height()
    question.press_sequentially("a")
    assert height() == one_line
    for _ in range(3):
        question.press("Shift+Enter")
        question.press_sequentially("b")
    assert height() > 2 * one_line
    assert question.evaluate("field => field.scrollHeight <= field.clientHeight")
    ask(page, "a b")
    expect(question).to_have_value("")
    assert height() == one_line


def test_stop_stops_and_keeps_what_was_written(visit):
    page = visit.open()
    ask(page, max_tokens=LONG, wait=False)
    expect(page.locator(".answer .prose").last).not_to_be_empty()
    page.click("#stop")
    expect(page.locator(".answer .note")).to_have_text("Stopped.")
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator("#question")).to_be_focused()
    written = page.locator(".answer .prose").last.inner_text()
    ask(page, "a b")  # the server is free again, and what was written belongs to the conversation
    assert words(visit.sent[1]["messages"][1]["content"]) == words(written)


def test_escape_stops(visit):
    page = visit.open()
    ask(page, max_tokens=LONG, wait=False)
    expect(page.locator(".answer .prose").last).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(page.locator(".answer .note")).to_have_text("Stopped.")


def test_page_follows_what_is_written_but_not_a_reader_who_scrolled_up(visit):
    page = visit.open()
    at_end = "document.documentElement.scrollHeight - innerHeight - scrollY < 5"
    force(page, "\n\n".join(map(str, range(60))))
    ask(page)
    assert page.evaluate(at_end)
    page.evaluate("scrollTo(0, 0)")
    page.unroute("**/v1/chat/completions")
    page.evaluate("""import("/following.js").then(({ following }) =>
        following(() => document.querySelector(".answer").append("more ".repeat(900))))""")
    assert page.evaluate("scrollY") == 0


def test_conversation_parameters_and_system_message_are_sent(visit, served):
    page = visit.open()
    open_parameters(page)
    page.fill("[name=system]", "x y")
    page.fill("[name=temperature]", "0.7")
    page.fill("[name=top_k]", "5")
    page.fill("[name=seed]", "3")
    page.select_option("#chat-model", "source")
    ask(page)
    first = page.locator(".answer .prose").last.inner_text()
    ask(page, "a b")
    system = {"role": "system", "content": "x y"}
    for sent in visit.sent:
        expected = {"model": "source", "temperature": 0.7, "top_k": 5, "seed": 3, "stream": True}
        assert expected.items() <= sent.items() and "top_p" not in sent
    assert visit.sent[0]["messages"] == [system, user(QUESTION)]
    turns = visit.sent[1]["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert words(turns[2]["content"]) == words(first) and turns[3] == user("a b")
    parameters = {"temperature": 0.7, "top_k": 5, "seed": 3}
    assert words(first) == words(answered(served, "source", [system, user(QUESTION)], **parameters))


def test_parameter_that_cannot_be_is_refused_before_anything_is_sent(visit):
    page = visit.open()
    open_parameters(page)
    page.fill("[name=temperature]", "-1")
    open_parameters(page, False)
    page.fill("#question", QUESTION)
    page.click("#ask")
    expect(page.locator("[name=temperature]")).to_be_visible()
    assert visit.sent == []


def test_retry_asks_the_same_again_and_keeps_the_earlier_answer(visit):
    page = visit.open()
    ask(page)
    page.click(".retry")
    expect(page.locator("#ask")).to_be_visible()
    assert visit.sent[0] == visit.sent[1]
    expect(page.locator(".round")).to_have_count(1)
    expect(page.locator(".round > .answer")).to_have_count(1)
    expect(page.locator(".earlier > summary")).to_have_text("Earlier answer")
    ask(page, "a b")
    assert [turn["role"] for turn in visit.sent[2]["messages"]] == ["user", "assistant", "user"]
    expect(page.locator(".retry")).to_have_count(1)


def test_conversation_outlives_a_reload_until_a_new_one_begins(visit):
    page = visit.open()
    ask(page)
    said = page.locator(".answer").inner_text()
    page.reload()
    assert words(page.locator(".answer").inner_text()) == words(said)
    ask(page, "a b")
    assert len(visit.sent[1]["messages"]) == 3
    page.click("#forget")
    expect(page.locator(".round")).to_have_count(0)
    ask(page, "a b")
    assert visit.sent[2]["messages"] == [user("a b")]


def test_answer_without_a_word_is_said_and_is_no_turn(visit):
    page = visit.open()
    page.select_option("#chat-model", "quitter")
    ask(page)
    expect(page.locator(".note")).to_have_text(re.compile("^No text was written · 1 token · "))
    ask(page, "a b")
    assert visit.sent[1]["messages"] == [user("a b")]


def test_thought_is_folded_and_the_solution_in_view(visit):
    page = visit.open()
    force(page, f"{THOUGHT}{SOLUTION}")
    ask(page)
    expect(page.locator(".thought summary")).to_have_text("Thought, 4 words")
    expect(page.locator(".thought .prose")).to_be_hidden()
    expect(page.locator(".answer > .prose")).to_have_text("it is 3")
    page.click(".thought summary")
    expect(page.locator(".thought .prose strong")).to_have_text("two")
    expect(page.locator(".thought .prose math msup")).to_be_visible()
    assert "<|" not in page.locator(".answer").inner_text()


def test_markdown_and_formulas_are_laid_out(visit):
    page = visit.open()
    table = "| c | d |\n|---|--:|\n| 1 | 2 |"
    blocks = ["# a", "- b", table, r"$$\frac{1}{2}$$", r"\[ e \]", r"so \(f\) costs $5, and $\bad$"]
    force(page, "\n\n".join(blocks))
    ask(page)
    prose = page.locator(".answer > .prose")
    for found, number in {"h1": 1, "li": 1, "td": 2, "math.tml-display": 2, "p > math": 1, "p > code": 1}.items():
        expect(prose.locator(found)).to_have_count(number)
    assert "costs $5" in prose.inner_text()


def test_refusal_of_the_server_is_shown_and_the_question_can_be_asked_again(visit):
    page = visit.open()
    refused = {"error": {"message": "too many <b>wait</b>.", "type": "rate_limit_error", "param": None, "code": None}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json=refused))
    ask(page)
    expect(page.locator("[role=alert].failed")).to_have_text("too many <b>wait</b>.")
    page.unroute("**/v1/chat/completions")
    page.click(".retry")
    expect(page.locator(".round > .answer > .prose")).not_to_be_empty()
    visit.errors.clear()  # the browser itself notes a status of 429


def test_answer_that_breaks_off_is_kept_and_said_to_be_cut(visit):
    page = visit.open()
    piece = json.dumps({"choices": [{"index": 0, "delta": {"content": "half an"}}]})
    body = f"data: {piece}\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page)
    expect(page.locator(".answer > .prose")).to_have_text("half an")
    expect(page.locator(".failed")).to_have_text("The connection ended before the answer did.")


def test_server_that_is_gone_is_said(visit):
    page = visit.open()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page)
    expect(page.locator(".failed")).to_have_text("The server does not answer. Is it still running?")
    visit.errors.clear()
