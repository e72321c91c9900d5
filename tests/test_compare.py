"""A comparison judges every row alike, goes on where it stopped, and refuses what would not compare."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from llm_modules import UserError
from llm_modules.checksums import read_json
from llm_modules.cli import app
from llm_modules.compare.figures import figures_of, rows_of, side_by_side
from llm_modules.compare.given import read_answers
from llm_modules.compare.pictures import frontier
from llm_modules.compare.plan import Plan
from llm_modules.compare.problems import Problems
from llm_modules.compare.report import sentences, summary, tables, write_report
from llm_modules.compare.row import row_file, run_row
from llm_modules.compare.rows import BY_NAME, PAIR, ROWS, chosen_rows
from llm_modules.compare.run import _foreseen, compare
from llm_modules.settings import ModelSettings, load_settings
from llm_modules.tasks import get_task
from tests.conftest import VOCAB, tiny_generator_config, tiny_source_config, tiny_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
HOSTILE = "<script>alert(1)</script> | `x`"
BUDGET = "3e8flops"


def record(one, other):
    return {"question": f"{one} {other} ?", "answer": f"{other} {one}"}


def write_lines(path, records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A source with a tokenizer, a pretrained generator, training data, test data, and a configuration."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(tiny_source_config(tie_word_embeddings=True)).save_pretrained(folder / "source")
    tiny_tokenizer().save_pretrained(folder / "source")
    AutoModelForCausalLM.from_config(tiny_generator_config(vocab_size=VOCAB)).save_pretrained(folder / "generator")
    tiny_tokenizer().save_pretrained(folder / "generator")
    pairs = [(one, other) for one in LETTERS for other in LETTERS]
    write_lines(folder / "train.jsonl", [{"prompt": f"{a} {b} ?", "completion": f"{b} {a}"} for a, b in pairs[::3]])
    write_lines(folder / "test.jsonl", [record(*pair) for pair in pairs[1::114]])
    settings = {
        "model": {
            "source": str(folder / "source"),
            "generator": tiny_generator_config().to_diff_dict() | {"model_type": "gpt_neo"},
            "num_heads": 2,
            "d_adapter": 10,
            "dropout": 0.0,
        },
        "data": {"train_file": str(folder / "train.jsonl"), "validation_fraction": 0.05},
        "training": {"batch_size": 4, "learning_rate_bridge": 3e-3, "learning_rate_generator": 3e-3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def plan_of(place, overrides=(), **changes):
    fields = {
        "settings": load_settings(place / "config.yaml", list(overrides)),
        "budget": BUDGET,
        "rates": (3e-3,),
        "num": 6,
        "test": str(place / "test.jsonl"),
        "verifier": "exact",
        "seeds": 1,
        "ask": ("y z ?",),
        "max_new_tokens": 4,
        "limit_s": None,
    }
    return Plan(**(fields | changes))


def command(place, out, *options):
    needed = ["--test", place / "test.jsonl", "--verifier", "exact", "--budget", BUDGET, "--rates", "3e-3", "--num", 6]
    given = ["compare", place / "config.yaml", *needed, "--ask", "y z ?", "--max-new-tokens", 4, "--out", out]
    return CliRunner().invoke(app, list(map(str, [*given, *options])))


# -- rows --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "pair-prompt"], ids=lambda row: row.name)
def test_every_row_is_fitted_and_judged_on_the_same_tokens(row, place, tmp_path):
    if row.name in ("lora", "shadow", "distilled-lora"):
        pytest.importorskip("peft")
    generator = [f"model.generator={place / 'generator'}"] if row.name == "generator-pretrained" else []
    plan = plan_of(place, generator, rates=(3e-3, 1e-3))
    plan.claim(tmp_path)
    if row.name == "distilled-lora":
        assert "left no model" in run_row(tmp_path, row.name, number=0)["left_out"]
        run_row(tmp_path, "lora", number=0)
    found = run_row(tmp_path, row.name, number=0)
    assert "left_out" not in found, found
    assert read_json(row_file(tmp_path, row.name, 0)) == found
    assert found["losses"]["tokens"] == [3] * 6 and found["losses"]["bytes"] == [3] * 6
    assert all(0 < loss < 200 for loss in found["losses"]["nats"])
    asked = 4 if row.name == "pair-bidirectional" else 6
    assert len(found["answers"]) == len(found["correct"]) == len(found["form"]) == asked and len(found["asked"]) == 1
    assert found["resident"] > 0 and found["peak_gb"] > 0.01 and found["tokens_per_s"] > 0
    fit = found["fit"]
    if row.is_trained:
        assert 0 < fit["training"]["flops"] <= 3.1e8 and fit["updates"] >= 1 and fit["rate"] in (3e-3, 1e-3)
        assert fit["tuning"]["flops"] > 0 and set(fit["trials"]) == {"0.003", "0.001"}
        assert 0 < found["trainable"] <= found["resident"]
        reads = row.name.startswith(("pair", "bridge", "distilled"))
        assert (fit["reading"]["flops"] > 0) == reads
    else:
        assert found["trainable"] == fit["updates"] == 0
    if row.name == "source-best-prompt":
        assert fit["chosen"] in fit["trials"] and len(fit["trials"]) == 5


def test_rows_are_chosen_by_name_and_the_pair_is_always_there():
    settings = ModelSettings(source="x", visibility="causal")
    names = [row.name for row in chosen_rows([], settings)]
    assert names[0] == PAIR and "pair-causal" not in names and "pair-prompt" in names
    assert "generator-pretrained" not in names
    assert "generator-pretrained" in [row.name for row in chosen_rows([], ModelSettings(source="x", generator="y"))]
    assert [row.name for row in chosen_rows(["lora"], settings)] == [PAIR, "lora"]
    assert [row.name for row in chosen_rows(["pair"], settings)] == [PAIR]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lorra"], "'lorra' is no row; choose among: pair, generator"),
        (["pair-prompt"], "it is the row pair"),
        (["generator-pretrained"], "names no pretrained weights"),
        (["distilled-lora"], "learns from the row lora; ask for both"),
    ],
)
def test_rows_that_cannot_be_had_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        chosen_rows(names, ModelSettings(source="x"))


def test_later_training_runs_take_the_rate_that_the_first_has_chosen(place, tmp_path):
    plan_of(place, rates=(3e-3, 1e-9), seeds=2).claim(tmp_path)
    first, second = (run_row(tmp_path, "generator", number=number) for number in (0, 1))
    assert first["fit"]["rate"] == second["fit"]["rate"] == 3e-3
    assert second["fit"]["trials"] == {} and first["losses"]["nats"] != second["losses"]["nats"]


def test_rows_too_slow_for_their_batches_get_smaller_ones(place, tmp_path):
    plan_of(place, ["training.batch_size=32"], budget="2e7flops").claim(tmp_path)
    assert run_row(tmp_path, "generator", number=0)["fit"]["batch_size"] < 32


# -- the whole --------------------------------------------------------------------------------


def test_comparison_is_written_and_goes_on_with_the_rows_that_are_missing(place, tmp_path):
    out = tmp_path / "out"
    answers = write_lines(
        tmp_path / "given.jsonl",
        [{"model": HOSTILE, **json.loads(line)} for line in (place / "test.jsonl").read_text().splitlines()[:4]],
    )
    first = command(place, out, "--rows", "generator", "--answers", answers)
    assert first.exit_code == 0, first.output
    assert first.stdout.endswith(f"report:  {out}/compare.html\nfigures: {out}/comparison.json\n")
    before = {name: row_file(out, name, 0).stat().st_mtime_ns for name in ("pair", "generator")}
    again = command(place, out, "--rows", "generator,source-zero-shot", "--answers", answers)
    assert again.exit_code == 0, again.output
    assert again.stdout.count("finished before") == 2
    assert before == {name: row_file(out, name, 0).stat().st_mtime_ns for name in ("pair", "generator")}
    results = json.loads((out / "comparison.json").read_text())
    assert [row["row"] for row in results["figures"]] == [
        "pair", "generator", "source-zero-shot", f"given:{HOSTILE}",
    ]  # fmt: skip
    pair, *_, given = results["figures"]
    assert pair["more_than_pair"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert given["given"] and given["exact_match"]["value"] == 1.0 and given["n"] == 4
    assert set(results["asked"][0]["answers"]) == {"pair", "generator alone", "source, zero-shot"}
    assert (out / "models" / "pair-0" / "config.json").is_file()
    page = (out / "compare.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"[^\\]<script", (out / "compare.md").read_text())
    changed = command(place, out, "--num", 5)
    assert changed.exit_code == 2 and "with num=6, now it is 5; rows of different" in changed.output


def test_rows_without_time_are_left_out_and_the_pair_never_is(place, tmp_path):
    plan = plan_of(place, limit_s=0.5)
    results = compare(plan, rows=["generator"], answers=None, output=tmp_path / "out")
    assert [row["row"] for row in results["figures"]] == ["pair"]
    assert "no time" in results["left_out"]["generator alone"]
    assert any("Generator alone is left out: no time" in said for said in sentences(results))


def test_a_row_needs_its_budget_and_what_rows_before_needed_beside(place):
    plan = plan_of(place, budget="100s", rates=(1e-3, 1e-4))
    assert _foreseen(plan, BY_NAME["lora"], {("pair", 0): 150.0}) == pytest.approx(120 + 30)
    assert _foreseen(plan, BY_NAME["source-few-shot"], {("pair", 0): 150.0}) == pytest.approx(30)


def test_budget_too_small_for_one_step_is_an_error_that_names_a_larger_one(place, tmp_path):
    result = command(place, tmp_path / "out", "--budget", "10flops", "--rows", "pair")
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert "the budget of 10 FLOPs is too small for one step on one example" in message and "give at least" in message
    assert not row_file(tmp_path / "out", "pair", 0).exists()


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        ((), {"budget": "soon"}, "is no budget"),
        ((), {"rates": (1e-3, 1e-3)}, "give different rates above 0"),
        ((), {"rates": (0.0,)}, "give different rates above 0"),
        ((), {"test": None}, "give those to test on as --test FILE"),
        ((), {"verifier": None}, "give --verifier"),
        (("data.task=gsm8k",), {}, "has its own verifier"),
        (("data.task=arithmetic", "data.train_file=null"), {"verifier": None}, "leave --test out"),
    ],
)
def test_plans_that_cannot_be_run_are_refused_before_anything_is_loaded(place, overrides, changes, message):
    with pytest.raises(UserError, match=message):
        plan_of(place, overrides, **changes).check()


def test_a_generator_without_source_is_no_pair_to_compare(place):
    settings = load_settings(place / "config.yaml").model_copy(
        update={"model": ModelSettings(source=None, generator="x")}
    )
    with pytest.raises(UserError, match="compare trains new pairs"):
        plan_of(place, settings=settings).check()


def test_train_and_test_sharing_an_example_is_found_and_refused(place, tmp_path):
    shared = write_lines(tmp_path / "test.jsonl", [record("b", "c"), record("a", "a"), record("a", "d")])
    with pytest.raises(UserError, match=r"2 of 3 test problems stand in the training data too \(the first is number 2"):
        compare(plan_of(place, test=str(shared)), rows=["pair"], answers=None, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(place, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and holds no comparison"):
        plan_of(place).claim(tmp_path)


def test_answers_are_read_by_model_and_question(place, tmp_path):
    problems = Problems(plan_of(place))
    test, asked = problems.test, problems.asked
    file = write_lines(
        tmp_path / "large.jsonl",
        [{"question": test[0].question, "answer": "x"}, {"question": asked[0].question, "answer": 7, "model": "other"}],
    )
    with pytest.raises(UserError, match="other answers none of the test questions"):
        read_answers(file, test=test, asked=asked)
    file = write_lines(tmp_path / "large.jsonl", [{"question": test[0].question, "answer": 5}])
    assert read_answers(file, test=test, asked=asked) == {"large": {test[0].question: "5"}}
    for records, message in [
        ([{"question": "z z z ?", "answer": "z"}, record("a", "a")], r"2 of its questions are not asked.*'z z z \?'"),
        ([{"question": test[0].question, "answer": "z"}] * 2, "a second time"),
        ([{"question": test[0].question}], "lacks `answer`"),
    ]:
        with pytest.raises(UserError, match=message):
            read_answers(write_lines(tmp_path / "bad.jsonl", records), test=test, asked=asked)


# -- figures and pages --------------------------------------------------------------------------------


def measured(correct, nats, **changes):
    """What a row might have written down."""
    cost = {"seconds": 2.0, "flops": 3e9}
    fit = {
        "training": cost, "reading": cost, "tuning": cost, "updates": 5, "examples": 20, "batch_size": 4,
        "rate": 1e-3, "trials": {"0.001": 1.0, "0.003": 2.0}, "last_loss": 0.5, "chosen": "",
    }  # fmt: skip
    return {
        "fit": fit | changes,
        "trainable": 10,
        "resident": 20,
        "peak_gb": 1.5,
        "losses": {"nats": nats, "tokens": [3] * len(nats), "bytes": [3] * len(nats)},
        "answers": ["a"] * len(correct),
        "correct": correct,
        "form": correct,
        "tokens_per_s": 100.0,
        "asked": [HOSTILE],
        "seconds": 3.0,
    }


@pytest.fixture
def results(place):
    problems = Problems(plan_of(place))
    rows = [BY_NAME[name] for name in (PAIR, "lora", "generator", "pair-bidirectional")]
    right, wrong = [True] * 6, [False] * 6
    found = {
        PAIR: [measured(right, [1.0] * 6), measured([True] * 5 + [False], [2.0] * 6)],
        "lora": [measured(wrong, [3.0] * 6)],
        "generator": [{"left_out": "it is gone"}],
        "pair-bidirectional": [measured(wrong[:4], [0.1] * 6)],
    }
    return {
        "task": "jsonl",
        "plan": json.loads(problems.plan.model_dump_json()) | {"rates": [1e-3, 3e-3]},
        "machine": {"cpu": "x", "cores": 1, "memory_gb": 1.0, "torch": "1", "transformers": "2", "python": "3"},
        "minutes": 1.0,
        "training_examples": 20,
        "figures": figures_of(found, rows, given={HOSTILE: {problems.test[0].question: "no"}}, problems=problems),
        "left_out": {"generator alone": "it is gone"},
        "asked": side_by_side(found, rows, given={}, problems=problems),
    }


def test_figures_are_means_over_runs_with_intervals_over_problems(results):
    pair, lora, leaky, given = results["figures"]
    assert pair["exact_match"]["value"] == pytest.approx(11 / 12) and pair["by_seed"] == [1.0, pytest.approx(5 / 6)]
    assert pair["loss_nats"]["value"] == pytest.approx(0.5)
    assert lora["more_than_pair"]["value"] == pytest.approx(-11 / 12) and lora["more_than_pair"]["interval"][1] < 0
    assert lora["bits_per_byte"]["value"] == pytest.approx(1 / 0.693147, rel=1e-4)
    assert lora["bits_more_than_pair"]["value"] == pytest.approx(0.5 / 0.693147, rel=1e-4)
    assert leaky["n"] == 4 and leaky["more_than_pair"]["value"] == pytest.approx(-1.0)
    assert given["given"] and given["n"] == 1 and "loss_nats" not in given


def test_answers_with_fields_are_judged_by_them_too(results):
    task = get_task("tickets")
    test = task.test(4, seed=0)
    problems = SimpleNamespace(task=task, test=test, asked=[])
    right, empty = [problem.response for problem in test], ["{}"] * 4
    found = {
        PAIR: [measured([True] * 4, [1.0] * 4) | {"answers": texts} for texts in (right, empty)],
        "lora": [measured([False] * 4, [1.0] * 4) | {"answers": [*right[:2], *empty[:2]]}],
    }
    pair, lora = figures_of(found, [BY_NAME[PAIR], BY_NAME["lora"]], given={}, problems=problems)
    assert pair["field_f1"]["value"] == pytest.approx(2 / 3)  # all right, and nothing said: precision 1, recall a half
    low, high = lora["field_f1"]["interval"]
    assert 0 <= low < lora["field_f1"]["value"] < high <= 1
    shown = tables(results | {"figures": [pair, lora]})[0]
    assert shown.header[4] == "F1 of fields" and str(shown.rows[0][4]).startswith("67%")
    assert "F1 of fields" not in tables(results)[0].header


def test_report_says_who_does_better_what_leaks_and_what_is_left_out(results, tmp_path):
    said = " ".join(sentences(results))
    assert (
        "LoRA on the source: 0%, -92 (-100 to -75) points beside the pair on the same 6 problems; it does worse" in said
    )
    assert "is at the edge of the grid" in said and "Generator alone is left out: it is gone." in said
    assert "0.033 nats per token when the answer stands before it, 0% right where it has to write it" in said
    assert [len(table.rows) for table in tables(results)] == [4, 3, 3]
    assert all(len(line) <= 110 or line.startswith("  ") for line in summary(results).splitlines())
    page = write_report(results, tmp_path).read_text()
    assert "<script" not in page and "(given)" in page
    assert {path.name for path in tmp_path.iterdir()} == {
        "accuracy.png", "pareto.png", "loss.png", "compare.html", "compare.md",
    }  # fmt: skip


def test_frontier_holds_what_no_other_beats_on_both():
    assert frontier([3, 1, 2, 2], [0.9, 0.5, 0.4, 0.7]) == [(1, 0.5), (2, 0.7), (3, 0.9)]
    assert frontier([1, 1], [0.1, 0.2]) == [(1, 0.2)]


def test_what_rows_wrote_is_found_again(tmp_path):
    (tmp_path / "rows").mkdir()
    row_file(tmp_path, PAIR, 1).write_text('{"row": "pair"}')
    assert rows_of(tmp_path, ROWS, seeds=2) == {PAIR: [{"row": "pair"}]}
