"""The demo's report: rules at their borders, and pages that no answer can break."""

import copy
import re
from fractions import Fraction
from html.parser import HTMLParser

import pytest

from llm_modules.evaluation import Score
from llm_modules.pages import WIDTH, escape_markdown
from llm_modules.plots import accuracy_figure, loss_figure, save_figure
from llm_modules.report import GIST_LENGTH, PICTURES, gist, summary, verdicts, write_report
from llm_modules.tasks import stratos
from llm_modules.verdicts import beside, findings, percent

KINDS = {"sum": 110, "gcd": 90}
RELATIONS = {"capital": 50, "symbol": 40}
HOSTILE = "<script>alert(1)</script> | `x` **b** [l](javascript:1) \x1b[31m &amp; {{ 7 * 7 }}"


def scored(hits, n):
    score = Score(hits, n)
    return {"exact_match": score.value, "interval": list(score.interval), "n": n}


def per_relation(*hits):
    found = {relation: scored(each, n) for (relation, n), each in zip(RELATIONS.items(), hits, strict=True)}
    return {key: {relation: found[relation][key] for relation in found} for key in ("exact_match", "interval", "n")}


def model_row(model, hits, form):
    by_kind = {kind: scored(round(hits / 200 * n), n) for kind, n in KINDS.items()}
    speed = {"tokens_per_s": 1234.5, "trained_parameters": 1_620_323}
    return {"model": model, **scored(hits, 200), "form": form, **speed, "by_kind": by_kind}


def answered(question, expected, text):
    models = ("source", "source-few-shot", "generator", "pair")
    answers = {model: {"text": text, "correct": model == "pair"} for model in models}
    return {"question": question, "expected": expected, "answers": answers}


@pytest.fixture
def results():
    """A run in which everything is shown, the source's help in arithmetic included."""
    speed = {"source": 9.0, "prompt": 45.0, "causal": 8.1, "new_tokens": 128, "repeats": 3}
    return {
        "minutes": 23.4,
        "peak_memory_gb": 4.13,
        "seeds": {"training": 0, "data": 0, "test": 0},
        "machine": {
            "cpu": "A CPU @ 2.7 GHz", "cores": 2, "memory_gb": 23.5, "torch": "2.13.0", "transformers": "5.23.0",
            "python": "3.11.2",
        },
        "stages": [{"name": "features", "seconds": 141.7}, {"name": "training", "seconds": 288.1}],
        "arithmetic_minutes": 7.2,
        "models": [
            model_row("source", 50, 0.0), model_row("source-few-shot", 70, 0.5), model_row("generator", 100, 0.99),
            model_row("pair", 190, 0.995),
        ],
        "reworded": [model_row("generator", 60, 0.9), model_row("pair", 120, 0.99)],
        "paper_questions": [
            {"question": "What is the sum of 5 and 5?", "answer": stratos.render("5+5=10", "10"), "correct": True},
            {"question": "Find the remainder by dividing 7 by 4.", "answer": "3", "correct": True},
        ],
        "examples": [answered("How much is 47 plus 38?", "85", stratos.render("47+38\n85", "85"))],
        "facts": [
            {"model": "source", **per_relation(20, 20)}, {"model": "source-few-shot", **per_relation(30, 30)},
            {"model": "generator", **per_relation(1, 1)}, {"model": "pair", **per_relation(28, 27)},
        ],
        "facts_controls": {"pair-zeroed": per_relation(1, 0), "chance": {"capital": 0.02, "symbol": 0.0}},
        "facts_examples": [answered("What is the capital of Norway?", "Oslo", "Oslo")],
        "speed": {**speed, "spread": {"source": [8, 10], "prompt": [44, 46], "causal": [8, 8.2]}},
        "speed_vs_source": {"prompt": 5.0, "causal": 0.9},
        "chat_command": "llm-modules chat runs/demo/arithmetic/model",
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name in PICTURES:
        (tmp_path / name).write_bytes(b"\x89PNG " + name.encode())
    return tmp_path


def row(results, section, model):
    return next(entry for entry in results[section] if entry["model"] == model)


def set_fact(results, model, relation, hits, n):
    entry = results["facts_controls"][model] if model == "pair-zeroed" else row(results, "facts", model)
    for key, value in scored(hits, n).items():
        entry[key][relation] = value


def finding(results, opening):
    (found,) = [each for each in findings(results) if each.text.startswith(opening)]
    return found


class TestArithmetic:
    @pytest.mark.parametrize(("hits", "shown"), [(159, False), (160, True)])
    def test_accuracy_bar_is_reached_at_80_percent(self, results, hits, shown):
        row(results, "models", "pair").update(scored(hits, 200))
        found = finding(results, "The pair solves")
        assert found.shown is shown
        assert ("reaches the bar of 80%" in found.text) is shown

    def test_accuracy_whose_interval_goes_below_the_bar_says_so(self, results):
        row(results, "models", "pair").update(scored(162, 200))
        assert "its interval goes below that" in finding(results, "The pair solves").text
        row(results, "models", "pair").update(scored(195, 200))
        assert "interval" not in finding(results, "The pair solves").text

    @pytest.mark.parametrize(("form", "shown"), [(0.975, False), (0.98, True)])
    def test_form_bar_is_reached_at_98_percent(self, results, form, shown):
        row(results, "models", "pair")["form"] = form
        assert any(f.shown is shown and "required form" in f.text for f in findings(results))

    def test_paper_questions_must_all_be_right(self, results):
        assert finding(results, "Of the paper's 2 questions the pair answers 2 right").shown
        results["paper_questions"][1]["correct"] = False
        assert not finding(results, "Of the paper's 2 questions the pair answers 1 right").shown

    @pytest.mark.parametrize(
        ("low", "high", "shown", "ending"),
        [
            (0.10, 0.899, True, "worse on arithmetic (50.0% vs 95.0% of the pair; intervals apart): the source helps"),
            (
                0.10,
                0.900,
                False,
                "as well on arithmetic (50.0% vs 95.0% of the pair; intervals overlap): the source do",
            ),
            (0.980, 1.00, False, "as well on arithmetic"),
            (
                0.981,
                1.00,
                False,
                "better on arithmetic (50.0% vs 95.0% of the pair; intervals apart): the source hurts",
            ),
        ],
    )
    def test_generator_alone_differs_only_where_intervals_are_apart(self, results, low, high, shown, ending):
        row(results, "models", "pair")["interval"] = [0.90, 0.98]
        row(results, "models", "generator")["interval"] = [low, high]
        found = finding(results, "The generator alone, without the source, does " + ending)
        assert found.shown is shown

    @pytest.mark.parametrize(
        ("hits", "shown", "said"),
        [(120, True, "right more often"), (65, False, "not clearly right more often"), (20, False, "right less often")],
    )
    def test_other_words_show_something_only_where_the_pair_is_apart(self, results, hits, shown, said):
        row(results, "reworded", "pair").update(scored(hits, 200))
        found = finding(results, "Asked in words that training never shows (200 problems)")
        assert found.shown is shown and said in found.text

    def test_pair_is_held_against_the_better_of_both_prompts(self, results):
        assert finding(results, "The pair does better on arithmetic than the source it reads (95.0% vs 35.0%").shown
        row(results, "models", "source").update(scored(188, 200))
        assert not finding(results, "The source by itself does as well on arithmetic as the pair").shown
        row(results, "models", "pair").update(scored(100, 200))
        assert not finding(results, "The source by itself does better on arithmetic than the pair").shown


class TestFacts:
    @pytest.mark.parametrize(
        ("pair", "few_shot", "shown", "figure"),
        [
            ((24, 40), (30, 40), True, "80.0%"),  # in floating point 0.8 * 0.75 is more than 0.6
            ((23, 40), (30, 40), False, "76.7%"),
            ((79_999, 100_000), (100_000, 100_000), False, "79.999%"),
        ],
    )
    def test_bar_is_80_percent_of_the_source_and_a_miss_is_not_rounded_away(
        self, results, pair, few_shot, shown, figure
    ):
        set_fact(results, "pair", "symbol", *pair)
        set_fact(results, "source-few-shot", "symbol", *few_shot)
        found = finding(results, "Facts, symbol")
        assert found.shown is shown
        assert f"has {figure} of the source's few-shot accuracy" in found.text
        assert finding(results, "Facts, capital: knowledge passes.").shown

    def test_pair_that_is_not_apart_from_the_generator_shows_nothing(self, results):
        set_fact(results, "generator", "capital", 24, 50)
        found = finding(results, "Facts, capital: that knowledge passes is not fully shown.")
        assert not found.shown
        assert "not clearly above the generator alone (48.0%; intervals overlap)" in found.text
        set_fact(results, "generator", "capital", 50, 50)
        assert "is below the generator alone (100.0%)" in finding(results, "Facts, capital").text

    @pytest.mark.parametrize(
        ("hits", "chance", "shown"), [(5, 0.05, True), (6, 0.05, False), (2, 0.0, True), (3, 0.0, False)]
    )
    def test_zeroed_states_must_fall_to_chance(self, results, hits, chance, shown):
        set_fact(results, "pair-zeroed", "capital", hits, 50)
        results["facts_controls"]["chance"]["capital"] = chance
        found = finding(results, "Facts, capital")
        assert found.shown is shown
        assert ("falls to chance" if shown else "stays above chance") in found.text

    def test_source_that_knows_nothing_has_nothing_to_pass_on(self, results):
        set_fact(results, "source-few-shot", "capital", 0, 50)
        found = finding(results, "Facts, capital")
        assert not found.shown and "gets none right" in found.text


class TestSpeedAndLimits:
    @pytest.mark.parametrize(("ratio", "shown", "spelled"), [(4.0, True, "4.0"), (3.9999, False, "3.9999")])
    def test_speed_bar_is_four_times_the_source(self, results, ratio, shown, spelled):
        results["speed_vs_source"]["prompt"] = ratio
        found = finding(results, f"With prompt visibility the pair writes {spelled} times")
        assert found.shown is shown
        assert spelled in summary(results)

    @pytest.mark.parametrize(("ratio", "shown"), [(0.999, False), (1.0, False), (1.001, True)])
    def test_causal_is_faster_only_above_the_source(self, results, ratio, shown):
        results["speed_vs_source"]["causal"] = ratio
        assert finding(results, "With causal visibility").shown is shown

    @pytest.mark.parametrize(
        ("key", "limit", "who"),
        [
            ("minutes", 25, "the whole run"),
            ("arithmetic_minutes", 8, "the arithmetic pair"),
            ("peak_memory_gb", 6, "mem"),
        ],
    )
    def test_limits_are_kept_up_to_and_including_them(self, results, key, limit, who):
        results[key] = float(limit)
        assert finding(results, "All limits are kept").shown
        results[key] = limit + 0.001
        found = finding(results, f"Over the limit: {who}")
        assert not found.shown and f"{limit}.001 of {limit}" in found.text

    def test_one_seed_is_never_taken_for_many(self, results):
        assert not finding(results, "This was one training run with one seed").shown


@pytest.mark.parametrize(
    ("value", "bar", "spelled"),
    [
        (0.79999, 0.8, "79.999%"),
        (0.8, 0.8, "80.0%"),
        (Fraction(4, 5), Fraction(4, 5), "80.0%"),
        (0.80001, 0.8, "80.001%"),
        (0.79999, None, "80.0%"),
    ],
)
def test_figures_are_spelled_on_their_side_of_the_bar(value, bar, spelled):
    assert percent(value, bar) == spelled


def test_a_bar_further_off_costs_no_decimals():
    assert beside(3.14159, 4) == "3.1"


def test_verdicts_are_the_findings_in_words(results):
    assert verdicts(results) == [found.text for found in findings(results)]


def test_summary_fits_the_terminal_and_names_all_that_counts(results):
    results["paper_questions"][0]["answer"] = HOSTILE * 9
    text = summary(results)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\x1b" not in text
    for part in (
        "pair",
        "generator alone",
        "source, few-shot",
        "95.0% (91–97)",
        "Not shown",
        "capital",
        "sum of 5 and 5",
    ):
        assert part in text
    assert results["chat_command"] in text


def test_summary_with_wide_figures_still_fits(results):
    for scores in results["facts"]:
        for relation in RELATIONS:
            set_fact(results, scores["model"], relation, 100, 100)
    assert max(map(len, summary(results).splitlines())) <= WIDTH


class Page(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "srcset", "action"}]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


def test_page_holds_its_pictures_and_loads_nothing(results, folder):
    page = Page(write_report(results, folder)[0].read_text())
    assert len(page.addresses) == len(PICTURES)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "make demo" in page.text and "How much is 47 plus 38?" in page.text


def test_no_answer_can_inject_markup(results, folder):
    hostile = answered(f"{HOSTILE} question", f"{HOSTILE} expected", HOSTILE)
    results["examples"].append(hostile)
    results["facts_examples"].append(hostile)
    before = Page(write_report(copy.deepcopy(results) | {"examples": results["facts_examples"]}, folder)[0].read_text())
    html, markdown = (path.read_text() for path in write_report(results, folder))
    page = Page(html)
    assert page.tags == before.tags and "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text
    rows = [line for line in markdown.splitlines() if "alert" in line]
    assert len(rows) == 2
    for line in rows:
        assert len(re.findall(r"(?<!\\)\|", line)) == 7  # six columns
        assert not re.search(r"(?<!\\)[<`*\[]", line)


def test_markdown_links_to_the_pictures_and_has_no_other_unescaped_image(results, folder):
    text = write_report(results, folder)[1].read_text()
    assert re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text) == list(PICTURES)
    assert "| pair | 95.0% (91–97) | 190 of 200 |" in text


def test_markdown_tables_are_regular(results, folder):
    lines = write_report(results, folder)[1].read_text().splitlines()
    tables = re.findall(r"(?:^\|.*\n)+", "\n".join(lines) + "\n", flags=re.MULTILINE)
    assert len(tables) == 8
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_missing_figure_is_an_error_and_not_a_blank(results, folder):
    del results["machine"]["cpu"]
    with pytest.raises(Exception, match="cpu"):
        write_report(results, folder)


def test_long_answer_is_folded_and_short_one_is_not(results, folder):
    rambling = "so it is odd, " * 40
    results["examples"] = [answered("long?", "1", rambling)]
    results["facts_examples"] = [answered("short?", "1", "one")]
    html, markdown = (path.read_text() for path in write_report(results, folder))
    assert html.count("<details><summary>so it is odd") == 4
    assert "<dd>one</dd>" in html
    assert rambling in html and rambling not in markdown and "…" in markdown


def test_gist_is_the_solution_on_one_line():
    assert gist(stratos.render("5+5\n5+5=10", "10")) == "10"
    assert gist("a\n\n b\t c") == "a b c"
    assert gist(" ") == "(nothing)"
    assert len(gist("word " * 99)) <= GIST_LENGTH and gist("word " * 99).endswith("word…")


def test_markdown_escape_leaves_plain_text_alone():
    assert escape_markdown("5 + 5 = 10.") == "5 + 5 = 10."
    assert escape_markdown("a|b\n*c*") == r"a\|b \*c\*"


def test_pictures_are_drawn(tmp_path):
    history = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}, {"step": 20, "eval_loss": 1.1}]
    save_figure(loss_figure({"pair": history, "generator": history}), tmp_path / "loss.png")
    bars = {model: {"sum": (1.0, 0.9, 1.0), "gcd": (0.0, 0.0, 0.1)} for model in ("source", "pair", "another")}
    save_figure(accuracy_figure(bars), tmp_path / "bars.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("loss.png", "bars.png"))
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "bars.png"}
