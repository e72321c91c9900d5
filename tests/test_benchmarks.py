"""The benchmarks that the docs cite run, and at a small size already show what they are there to show."""

import dataclasses
import importlib
import json
import math
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from benchmarks import (
    gpu,
    halves,
    identity_start,
    leak,
    paper_step,
    source_bits,
    store_dtypes,
    training_speed,
    word_problems,
)
from benchmarks.results import BEGIN, END, parser, publish

DATA = Path(__file__).parents[2] / "shared" / "data"
GSM8K, WORD_PROBLEMS = DATA / "gsm8k" / "train.jsonl", DATA / "math_word_problems"


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py")), ids=lambda f: f.stem)
def test_every_benchmark_finds_what_it_imports(file):
    importlib.import_module(f"benchmarks.{file.stem}")


def test_only_the_wiring_that_reads_the_future_falls_below_the_entropy_and_only_while_it_reads(
    default_source, tmp_path
):
    leak.main(["--quick", "--output", str(tmp_path)])
    found = {
        (finding["data"], finding["visibility"]): finding
        for finding in json.loads((tmp_path / "benchmarks" / "leak.json").read_text())["findings"]
    }
    entropy = math.log(leak.VOCAB)
    leaky = found["random", "bidirectional"]
    assert leaky["teacher_forced_nats"] < entropy - 0.1
    assert leaky["decoding_nats"] > entropy
    for visibility in leak.WITHOUT_FUTURE:
        honest = found["random", visibility]
        assert honest["teacher_forced_nats"] > entropy - 0.02
        assert honest["decoding_nats"] == pytest.approx(honest["teacher_forced_nats"], abs=1e-3)
    assert {visibility for data, visibility in found if data == "arithmetic"} == set(leak.VISIBILITIES)
    assert found["arithmetic", "causal"]["exact_match"]["n"] == leak.SMALL.num_problems
    assert "bidirectional" in (tmp_path / "docs" / "leak.md").read_text()
    assert (tmp_path / "docs" / "leak.png").stat().st_size > 0


def test_publishing_keeps_what_stands_around_the_measured_part_of_a_page(tmp_path, capsys):
    given = parser("name", None).parse_args(["--output", str(tmp_path)])
    page = tmp_path / "docs" / "some-name.md"
    page.parent.mkdir()
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nWhat it costs.\n")
    for measured in ("first", "second"):
        publish(
            "some-name",
            given,
            command="python -m benchmarks.name",
            measured=measured,
            figure=plt.figure(),
            results={"seed": 0},
            started=0.0,
        )
    before, after = page.read_text().split("second")
    assert before == f"# Title\n\n{BEGIN}\n"
    assert after.endswith(f"\n{END}\n\nWhat it costs.\n")
    assert json.loads((tmp_path / "benchmarks" / "some_name.json").read_text())["seed"] == 0


@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K's train.jsonl does not lie beside the project")
def test_a_pair_starts_as_its_source_and_then_falls_below_it(default_source, tmp_path):
    identity_start.main([str(GSM8K), "--quick", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "benchmarks" / "identity_start.json").read_text())
    source, course = results["source"], results["course"]
    assert course["0"]["all"] == pytest.approx(source["all"], abs=1e-4)
    assert course["0"]["text"] == pytest.approx(source["text"], abs=1e-4)
    assert course[str(identity_start.SMALL.steps)]["all"] < source["all"]
    assert results["published_start"]["all"] > results["ln_vocab_nats"] - 0.1
    assert (tmp_path / "docs" / "identity-start.png").stat().st_size > 0


def test_worked_steps_become_the_thought_and_calculator_marks_go():
    record = {"question": "How many?", "answer": "She sold 48/2 = <<48/2=24>>24 clips.\nThat is all.\n#### 24"}
    assert identity_start.to_conversation(record) == [
        {"role": "user", "content": "How many?"},
        {
            "role": "assistant",
            "content": "<|begin_of_thought|>\nShe sold 48/2 = 24 clips.\nThat is all.\n<|end_of_thought|>\n"
            "<|begin_of_solution|>\n24\n<|end_of_solution|>",
        },
    ]


@pytest.mark.slow
def test_training_speed_measures_every_competitor_and_figure(default_source, tmp_path):
    pytest.importorskip("peft")
    training_speed.main(["--quick", "--output", str(tmp_path)])
    paper_step.main(["--quick", "--output", str(tmp_path)])
    figures = json.loads((tmp_path / "benchmarks" / "results.json").read_text())
    assert figures.keys() == training_speed.BARS.keys() | paper_step.BARS.keys()
    for figure in figures.values():
        low, high = figure["spread"]
        assert 0 < low <= high
    page = (tmp_path / "docs" / "performance.md").read_text()
    assert "ShadowPEFT" in page and "train_share_of_peak" in page


def test_every_number_type_of_the_store_is_trained_on_and_int8_takes_about_a_quarter(default_source, tmp_path):
    store_dtypes.main(["--quick", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "benchmarks" / "store_dtypes.json").read_text())
    found = {finding["kind"]: finding for finding in results["findings"]}
    assert list(found) == list(store_dtypes.KINDS)
    assert found["float32"]["loss_nats"] == pytest.approx(found["memory"]["loss_nats"], abs=1e-4)
    assert found["int8"]["megabytes"] < 0.3 * found["float32"]["megabytes"]
    assert "int8" in (tmp_path / "docs" / "store-dtypes.md").read_text()


def test_a_pair_and_its_halves_are_asked_the_same_and_compared_seed_by_seed(default_source, tmp_path):
    variant = "generator alone, fast: training.learning_rate_generator=0.01"
    _, runs = halves.runs_of(["recipes/arithmetic.yaml", "--quick", "--output", str(tmp_path), "--also", variant])
    assert [run.row for run in runs] == ["pair", "generator alone", "source, few-shot", "generator alone, fast"]
    figures = [halves.carry_out(run) for run in runs]
    assert [one["parameters"] for one in figures] == [1620325, 6876032, 0, 6876032]
    assert halves.carry_out(runs[0]) == figures[0]  # kept
    pair, alone, *_ = halves.rows_of(figures, "arithmetic")
    assert (
        pair["exact_match"]["n"] == alone["exact_match"]["n"] == 4
        and "more" not in pair
        and alone["more"]["value"] <= 0.0
    )
    assert halves.cells([pair, alone])[0][0] == "pair"
    with pytest.raises(SystemExit, match="other settings"):
        halves.carry_out(dataclasses.replace(runs[0], num_problems=5))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_paper_pair_is_measured_beside_lora_on_whatever_device_there_is(tmp_path):
    pytest.importorskip("peft")
    gpu.main(["--quick", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "benchmarks" / "gpu.json").read_text())
    assert [one["name"] for one in found["training"]] == [kind.name for kind in (*gpu.PAIRS, gpu.LORA)]
    assert all(min(one["seconds"]) > 0 and one["flops"] > 0 for one in found["training"])
    assert found["answers"].keys() == {"source", "pair, causal", "pair, prompt"}


@pytest.mark.slow
def test_a_source_in_fewer_bits_takes_less_and_stays_near(default_source, tmp_path):
    pytest.importorskip("bitsandbytes")
    source_bits.main(["--quick", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "benchmarks" / "source_bits.json").read_text())["findings"]
    whole, eight, four = found
    assert [one["kind"] for one in found] == ["whole", "8bit", "4bit"]
    assert four["megabytes"] < eight["megabytes"] < 0.5 * whole["megabytes"]
    assert whole["nearness"] == pytest.approx(1) and eight["nearness"] > 0.99 and four["nearness"] > 0.9


@pytest.mark.slow
@pytest.mark.skipif(not WORD_PROBLEMS.is_dir(), reason="the word problems do not lie beside the project")
def test_folds_of_word_problems_are_trained_once_and_pooled(default_source, tmp_path):
    run = [str(WORD_PROBLEMS), "--quick", "--folds", "0", "1", "--output", str(tmp_path)]
    word_problems.main(run)
    first = (tmp_path / "word-problems" / "fold0" / "result.json").stat().st_mtime_ns
    word_problems.main(run)
    assert (tmp_path / "word-problems" / "fold0" / "result.json").stat().st_mtime_ns == first
    results = json.loads((tmp_path / "benchmarks" / "word_problems.json").read_text())
    assert [found["n"] for found in results["folds"].values()] == [8, 8]
