"""One question, a column a model."""

from playwright.sync_api import expect

from tests.page.visits import QUESTION, answered, ask, user, words


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
