"""The heat map is what the server measured, and needs no mouse."""

import re

import httpx2
import pytest
from playwright.sync_api import expect

from tests.page.visits import QUESTION, Visit, ask, user


def test_heat_map_shows_what_the_server_measured(visit, served):
    page = visit.open("inside")
    assert page.locator("#inside-model option").all_inner_texts() == ["adder", "rereader", "quitter"]
    ask(page, max_tokens=6)
    request = {"model": "adder", "messages": [user(QUESTION)], "max_tokens": 6}
    found = httpx2.post(f"{served}/v1/inspect", json=request, timeout=60).json()
    written, read = page.locator("[role=option]"), page.locator("p.tokens .token")
    expect(written).to_have_count(len(found["written"]))
    expect(read).to_have_count(len(found["read"]))
    shade = "tokens => tokens.map(token => Number(token.style.getPropertyValue('--shade')))"
    for layer, name in enumerate(["1", "2"]):
        page.locator(".layers label", has_text=name).click()
        gates = found["gates"][layer]
        assert written.evaluate_all(shade) == pytest.approx([gate / max(gates) for gate in gates])
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
    place = "[...document.activeElement.parentElement.children].indexOf(document.activeElement)"
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
