"""Nothing that a text says runs in the page or is loaded by it, whoever wrote the text."""

import pytest
from playwright.sync_api import Error, expect

from tests.page.visits import THOUGHT, ask, force

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
    gates = [[0.5] * len(HOSTILE)]
    attention = [[[1 / len(HOSTILE)] * len(HOSTILE)] * len(HOSTILE)]
    found = {
        "model": HOSTILE[1],
        "read": HOSTILE,
        "written": HOSTILE,
        "gates": gates,
        "attention": attention,
    }
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
    for written in ATTEMPTS:
        with pytest.raises(Error, match="Trusted"):
            page.evaluate(written)
    nothing_came_of_it(page)
    assert len(visit.errors) >= len(ATTEMPTS)  # the browser notes each
    visit.errors.clear()


ATTEMPTS = [
    "document.querySelector('main').innerHTML = '<img src=x onerror=\"hacked = 1\">'",
    "document.querySelector('main').setAttribute('onclick', 'hacked = 1')",
    "document.head.append(Object.assign(document.createElement('script'), { text: 'hacked = 1' }))",
    "document.head.append(Object.assign(document.createElement('script'), { src: 'http://other.invalid/x.js' }))",
    "setTimeout('hacked = 1')",
]


def nothing_came_of_it(page):
    page.wait_for_timeout(50)  # an error handler of a picture would come later
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("main :is(script, img, svg, iframe, style, object, embed, [onerror], [onclick])").count() == 0
