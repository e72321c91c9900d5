"""The page in a real browser: it asks, streams, stops, compares, looks inside, and runs nothing that a text says."""

import json
import re
import shutil

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_modules.serving.page_files import FOLDER

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = sync_api.expect

QUESTION = "1 + 2 ?"
LONG = 1_000  # tokens: more than the tiny pair writes while a test looks at it
THOUGHT = "<|begin_of_thought|>\n\nfirst **two**, then $x^2$\n\n<|end_of_thought|>\n\n"
SOLUTION = "<|begin_of_solution|>\n\nit is `3`\n\n<|end_of_solution|>"
HOSTILE = [
    "<script>hacked = 1</script>",
    "<img src=x onerror='hacked = 1'>",
    "<svg onload='hacked = 1'><use href='http://other.invalid/x.svg#a'></svg>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "<math><mtext><table><mglyph><style><img src=x onerror='hacked = 1'>",
    "</textarea></p></article><script src='http://other.invalid/x.js'></script>",
    "[press](javascript:hacked=1) <javascript:hacked=1> [data](data:text/html,<script>hacked=1</script>)",
    "[press](http://other.invalid 'x\" onmouseover=\"hacked=1')",
    "![picture](http://other.invalid/x.png) ![](data:image/svg+xml,<svg onload='hacked=1'>)",
    "```\"><img src=x onerror='hacked=1'>\nx\n```",
    r"$\href{javascript:hacked=1}{x}$ $\url{javascript:hacked=1}$ $\text{<img src=x onerror='hacked=1'>}$",
    r"$$\includegraphics{http://other.invalid/x.png}$$",
    r"\(\class{a\" onclick=\"hacked=1}{x}\) \(\style{background:url(http://other.invalid/x)}{x}\)",
    "{{ constructor.constructor('hacked=1')() }} ${hacked=1} `${hacked=1}`",
]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium to open the page in: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Visit:
    """One visit of the page, which must end without a script error and without a request to anybody else."""

    def __init__(self, browser, url, **context):
        self.url = url
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.strangers, self.errors, self.sent = [], [], []
        self.page.on("request", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("dialog", lambda dialog: self.errors.append("a dialog opened") or dialog.dismiss())

    def _note(self, request):
        if not request.url.startswith(self.url):
            self.strangers.append(request.url)
        if request.method == "POST":
            self.sent.append(request.post_data_json)

    def open(self, view="chat"):
        self.page.goto(f"{self.url}/#{view}")
        expect(self.page.locator(f"#{view}")).to_be_visible()
        expect(self.page.locator("#chat-model option").first).to_be_attached()
        return self.page

    def close(self):
        self.context.close()
        assert self.strangers == [] and self.errors == []


@pytest.fixture
def visit(browser, served):
    visit = Visit(browser, served)
    yield visit
    visit.close()


def ask(page, question=QUESTION, *, max_tokens=24, wait=True):
    page.locator("#parameters").evaluate("panel => panel.open = true")
    page.fill("[name=max_tokens]", str(max_tokens))
    page.fill("#question", question)
    page.press("#question", "Enter")
    if wait:
        expect(page.locator("#ask")).to_be_visible()


def answered(served, model, messages, **parameters):
    """What the server answers to anybody."""
    request = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0} | parameters
    response = httpx2.post(f"{served}/v1/chat/completions", json=request, timeout=60)
    return response.json()["choices"][0]["message"]["content"]


def force(page, text, *, model="adder", size=3):
    """Have every answer be this text, as a stream."""
    deltas = [{"content": text[at : at + size]} for at in range(0, len(text), size)]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in [{"role": "assistant"}, *deltas]]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def words(text):
    return " ".join(text.split())


def user(content):
    return {"role": "user", "content": content}


def test_question_is_asked_and_the_answer_streams(visit, served):
    page = visit.open()
    ask(page, max_tokens=200, wait=False)
    answer = page.locator(".answer .prose").last
    expect(page.locator("#stop")).to_be_visible()
    expect(answer).not_to_be_empty()
    early = answer.inner_text()
    expect(page.locator("#ask")).to_be_visible()
    whole = answer.inner_text()
    assert len(early) < len(whole) and words(whole).startswith(words(early)[:20])
    assert words(whole) == words(answered(served, "adder", [user(QUESTION)], max_tokens=200))
    assert re.match(r"200 tokens · [\d.]+ per second · first after [\d.]+ s · cut at 200 tokens", page.inner_text(".note"))
    expect(page.locator(".question")).to_have_text(QUESTION)
    expect(page.locator("#question")).to_have_value("")


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


def test_conversation_parameters_and_system_message_are_sent(visit, served):
    page = visit.open()
    page.locator("#parameters").evaluate("panel => panel.open = true")
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
        assert (sent["model"], sent["temperature"], sent["top_k"], sent["seed"], sent["stream"]) == ("source", 0.7, 5, 3, True)
        assert "top_p" not in sent
    assert visit.sent[0]["messages"] == [system, user(QUESTION)]
    turns = visit.sent[1]["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert words(turns[2]["content"]) == words(first) and turns[3] == user("a b")
    parameters = {"temperature": 0.7, "top_k": 5, "seed": 3}
    assert words(first) == words(answered(served, "source", [system, user(QUESTION)], **parameters))


def test_parameter_that_cannot_be_is_refused_before_anything_is_sent(visit):
    page = visit.open()
    page.fill("[name=temperature]", "-1")
    page.locator("#parameters").evaluate("panel => panel.open = false")
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
    expect(page.locator(".earlier summary")).to_have_text("Earlier answer")
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
    force(page, "# a\n\n- b\n\n| c | d |\n|---|--:|\n| 1 | 2 |\n\n$$\\frac{1}{2}$$\n\n\\[ e \\]\n\nso \\(f\\) costs $5, and $\\bad$")
    ask(page)
    prose = page.locator(".answer > .prose")
    for found, number in {"h1": 1, "li": 1, "td": 2, "math.tml-display": 2, "p > math": 1, "p > code": 1}.items():
        expect(prose.locator(found)).to_have_count(number)
    assert "costs $5" in prose.inner_text()


def test_compare_shows_three_columns(visit, served):
    page = visit.open("compare")
    expect(page.locator("#compared input:checked")).to_have_count(3)
    ask(page)
    columns = page.locator(".columns .answer")
    expect(columns).to_have_count(3)
    for column, model in zip(columns.all(), ["source", "alone", "adder"], strict=True):
        expect(column.locator(".who")).to_have_text(model)
        said = column.locator("> .prose").inner_text()
        assert words(said) == words(answered(served, model, [user(QUESTION)]))
    boxes = [column.bounding_box() for column in columns.all()]
    assert len({box["y"] for box in boxes}) == 1 and len({box["x"] for box in boxes}) == 3
    page.uncheck("#compared input[value=alone]")
    page.check("#compared input[value=rereader]")
    ask(page, "a b")
    assert page.locator(".round").last.locator(".who").all_inner_texts() == ["source", "adder", "rereader"]
    expect(page.locator(".round")).to_have_count(2)


def test_comparing_nothing_is_said_and_nothing_is_sent(visit):
    page = visit.open("compare")
    for box in page.locator("#compared input").all():
        box.uncheck()
    ask(page)
    expect(page.locator("#notice")).to_have_text("Choose at least one model to compare.")
    assert visit.sent == []


def test_heat_map_shows_what_the_server_measured(visit, served):
    page = visit.open("inside")
    assert page.locator("#inside-model option").all_inner_texts() == ["adder", "rereader"]
    ask(page, max_tokens=6)
    request = {"model": "adder", "messages": [user(QUESTION)], "max_tokens": 6}
    found = httpx2.post(f"{served}/v1/inspect", json=request, timeout=60).json()
    written, read = page.locator("[role=option]"), page.locator("p.tokens .token")
    expect(written).to_have_count(len(found["written"]))
    expect(read).to_have_count(len(found["read"]))
    shade = "tokens => tokens.map(token => Number(token.style.getPropertyValue('--shade')))"
    for layer, name in enumerate(["1", "2"]):
        page.locator(".layers label", has_text=name).click()
        assert written.evaluate_all(shade) == pytest.approx(found["gates"][layer])
        attention = found["attention"][layer][0]
        assert read.evaluate_all(shade) == pytest.approx([share / max(attention) for share in attention])
    colours = "tokens => tokens.map(token => getComputedStyle(token).backgroundColor)"
    assert len(set(read.evaluate_all(colours))) > 3


def test_heat_map_is_reached_and_read_by_keyboard_alone(visit):
    page = visit.open("inside")
    ask(page, max_tokens=30)
    expect(page.locator("[role=option]").first).to_be_visible()
    for _ in range(12):  # backwards from the question: the tokens come before it
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.role === 'option'"):
            break
    chosen = page.locator("[role=option][aria-selected=true]")
    place = "document.activeElement.parentElement && [...document.activeElement.parentElement.children].indexOf(document.activeElement)"
    expect(chosen).to_be_focused()
    assert page.evaluate(place) == 0
    assert re.search(r"token 1 of \d+: gate [\d.]+ % open", page.inner_text(".figures"))
    for key, expected in {"ArrowRight": 1, "ArrowLeft": 0, "End": 29, "Home": 0}.items():
        page.keyboard.press(key)
        assert page.evaluate(place) == expected
        expect(page.locator(".figures")).to_contain_text(f"token {expected + 1} of 30")
    expect(page.locator("[role=option][tabindex='0']")).to_have_count(1)
    assert re.search(r"gate [\d.]+ % open", chosen.get_attribute("aria-label"))
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")  # the radio buttons of the layers
    expect(page.locator(".layers input").nth(1)).to_be_checked()


def test_keys_up_and_down_go_to_the_lines_above_and_below(browser, served):
    visit = Visit(browser, served, viewport={"width": 390, "height": 780})
    page = visit.open("inside")
    ask(page, max_tokens=60)
    page.locator("[role=option]").first.click()
    top = "document.activeElement.offsetTop"
    first = page.evaluate(top)
    page.keyboard.press("ArrowDown")
    second = page.evaluate(top)
    assert second > first
    page.keyboard.press("ArrowUp")
    assert page.evaluate(top) == first
    visit.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_phone(browser, served, scheme):
    visit = Visit(browser, served, viewport={"width": 390, "height": 780}, color_scheme=scheme)
    for view in ("chat", "compare", "inside"):
        page = visit.open(view)
        ask(page, "a" * 300, max_tokens=8)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("#ask").bounding_box()["height"] >= 40
    visit.close()


def test_screen_reader_waits_for_the_whole_answer(visit):
    page = visit.open()
    ask(page, max_tokens=LONG, wait=False)
    expect(page.locator("[role=log] .answer[aria-busy=true]").first).to_be_attached()
    page.click("#stop")
    expect(page.locator("[aria-busy]")).to_have_count(0)


def test_nothing_moves_for_who_wants_it_so(browser, served):
    visit = Visit(browser, served, reduced_motion="reduce")
    page = visit.open()
    ask(page, max_tokens=LONG, wait=False)
    expect(page.locator(".answer[aria-busy]").first).to_be_attached()
    assert page.evaluate("document.getAnimations().length") == 0
    page.click("#stop")
    expect(page.locator("#ask")).to_be_visible()
    visit.close()


def test_refusal_of_the_server_is_shown_and_the_question_can_be_asked_again(visit):
    page = visit.open()
    refused = {"error": {"message": "too many <b>wait</b>.", "type": "rate_limit_error", "param": None, "code": None}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, headers={"Retry-After": "2"}, json=refused))
    ask(page)
    expect(page.locator("[role=alert].failed")).to_have_text("too many <b>wait</b>. Try again in 2 s.")
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


def test_no_text_of_a_model_or_a_user_runs_or_loads_anything(visit):
    page = visit.open()
    for text in HOSTILE:
        force(page, text)
        ask(page, text)
        page.unroute("**/v1/chat/completions")
    force(page, "".join(THOUGHT.replace("two", text) for text in HOSTILE), size=7)
    ask(page, "all at once")
    nothing_came_of_it(page)
    expect(page.locator(".round")).to_have_count(len(HOSTILE) + 1)
    page.reload()
    expect(page.locator(".round")).to_have_count(len(HOSTILE) + 1)
    nothing_came_of_it(page)
    for address in page.locator("main a").evaluate_all("links => links.map(link => link.protocol)"):
        assert address in ("http:", "https:", "mailto:")


def test_no_name_of_a_module_and_no_token_runs_anything(visit):
    page = visit.open()
    models = [{"id": text, "object": "model", "parent": "source"} for text in HOSTILE]
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": models}))
    page.reload()
    expect(page.locator("#chat-model option")).to_have_count(len(HOSTILE))
    attention = [[[1 / len(HOSTILE)] * len(HOSTILE)] * len(HOSTILE)]
    found = {"model": HOSTILE[1], "read": HOSTILE, "written": HOSTILE, "gates": [[0.5] * len(HOSTILE)], "attention": attention}
    page.route("**/v1/inspect", lambda route: route.fulfill(json=found))
    for view in ("chat", "compare", "inside"):
        force(page, HOSTILE[0])
        page.goto(f"{visit.url}/#{view}")
        ask(page, HOSTILE[1])
    expect(page.locator("[role=option]")).to_have_count(len(HOSTILE))
    page.locator("[role=option]").last.click()
    assert page.locator(".columns .who").first.inner_text() == HOSTILE[0]
    nothing_came_of_it(page)


def test_policy_would_stop_a_script_that_got_through(visit):
    page = visit.open()
    with pytest.raises(sync_api.Error, match="TrustedHTML"):
        page.evaluate("document.querySelector('main').innerHTML = '<img src=x onerror=\"hacked = 1\">'")
    page.evaluate("""() => {
        const link = document.createElement("a");
        link.setAttribute("onclick", "hacked = 1");
        document.body.append(link);
        link.click();
    }""")
    nothing_came_of_it(page)
    assert any("Content Security Policy" in error or "TrustedHTML" in error for error in visit.errors)
    visit.errors.clear()


def nothing_came_of_it(page):
    page.wait_for_timeout(50)  # an error handler of a picture would come later
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("main :is(script, img, svg, iframe, style, object, embed, form form, [onerror], [onclick])").count() == 0


TAGS = [tag for part in (THOUGHT, SOLUTION) for tag in re.findall(r"<\|\w+\|>", part)]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from([*TAGS, "a", " ", "<", "<|", "<|end", "|>", "\n"]), max_size=12))
def test_no_part_of_a_tag_is_ever_shown_while_an_answer_streams(browser, served, pieces):
    page = pages(browser, served)
    text = "".join(pieces)
    found = page.evaluate(
        """async (text) => {
            const { sections } = await import("/sections.js");
            const early = [...text].map((_, end) => sections(text.slice(0, end), { finished: false }));
            return [...early, sections(text, { finished: true })];
        }""",
        text,
    )
    for parts in found:
        shown = (parts["thought"] or "") + parts["solution"]
        assert not any(tag in shown for tag in TAGS)
    *early, last = found
    assert last["thinking"] is False
    if "<" not in "".join(piece for piece in pieces if piece not in TAGS):
        assert not any("<" in (parts["thought"] or "") + parts["solution"] for parts in early)


def test_every_library_of_others_is_named_with_its_licence():
    vendor = FOLDER / "vendor"
    table = (vendor / "README.md").read_text()
    for file in vendor.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in table
    for version, file in {"15.0.3": "markdown-it.js", "3.4.18": "dompurify.js", "0.13.5": "temml.js"}.items():
        assert version in table and version in (vendor / file).read_text()
