"""A visit of the page: what is typed into it, and what must not come of it."""

import json
import re

import httpx2
from playwright.sync_api import expect

expect.set_options(timeout=60_000)  # a busy machine is no error

QUESTION = "1 + 2 ?"
LONG = 1_000  # tokens: more than the tiny pair writes while a test looks at it
THOUGHT = "<|begin_of_thought|>\n\nfirst **two**, then $x^2$\n\n<|end_of_thought|>\n\n"
SOLUTION = "<|begin_of_solution|>\n\nit is `3`\n\n<|end_of_solution|>"


class Visit:
    """One visit of the page, which must end without a script error and without a request to anybody else."""

    def __init__(self, browser, url, **context):
        self.url = url
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
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


def open_parameters(page, is_open=True):
    page.locator("#parameters").evaluate("(panel, is) => (panel.open = is)", is_open)


def ask(page, question=QUESTION, *, max_tokens=24, wait=True):
    open_parameters(page)
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
    """Letters and figures: of signs that a tiny model strews about, some are Markdown."""
    return re.findall(r"\w+", text)


def user(content):
    return {"role": "user", "content": content}
