"""Every view fits a phone, is quiet for who wants it so, and asks for the server's key where there is one."""

import pytest
from playwright.sync_api import expect

from llm_modules.serving.app import create_app
from llm_modules.serving.page_files import FOLDER
from tests.page.visits import LONG, Visit, ask
from tests.tiny_server import running


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


def test_key_is_asked_for_once_where_the_server_has_one(browser, modules):
    with running(create_app(modules, api_key="sesame")) as address:
        visit = Visit(browser, address)
        page = visit.page
        page.goto(address)
        expect(page.locator("#notice")).to_contain_text("the API key is missing or wrong")
        for key in ("wrong", "sesame"):
            page.fill("#key", key)
            page.press("#key", "Enter")
            expect(page.locator("#notice")).to_be_visible(visible=key == "wrong")
        expect(page.locator("#access")).to_be_hidden()
        page.reload()
        ask(page)
        expect(page.locator(".answer .prose").last).not_to_be_empty()
        visit.errors.clear()  # the browser itself notes a status of 401
        visit.close()


def test_every_library_of_others_is_named_with_its_licence():
    vendor = FOLDER / "vendor"
    table = (vendor / "README.md").read_text()
    for file in vendor.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in table
    for version, file in {"15.0.3": "markdown-it.js", "3.4.18": "dompurify.js", "0.13.5": "temml.js"}.items():
        assert version in table and version in (vendor / file).read_text()
