"""The computed page: volumes by their formulas, one GPU sends nothing, more GPUs are never more efficient."""

import json

import pytest

from benchmarks import scaling
from llm_modules.planning import plan


def test_what_is_sent_and_kept_follows_the_formulas(tmp_path):
    machines = scaling.Machines()
    online, ddp, fsdp2, *_ = scaling.cases(tmp_path)
    made = plan(ddp.settings, given=ddp.given)
    assert made.num_trainable == 99_106_432
    rows = {case.name: scaling.scaled(case, machines) for case in (online, ddp, fsdp2)}
    for found in rows.values():
        assert [row["gpus"] for row in found] == [1, 8, 64, 512]
        assert found[0]["sent_gb"] == 0
        steps = [row["step_ms"] for row in found]
        assert steps == sorted(steps)
        assert [row["examples_per_update"] for row in found] == [8, 64, 512, 4096]
    assert rows[ddp.name][1]["sent_gb"] == pytest.approx(7 / 8 * 2 * 4 * made.num_trainable / 1e9)
    assert rows[ddp.name][1]["sent_gb"] < rows[fsdp2.name][1]["sent_gb"] <= 1.5 * rows[ddp.name][1]["sent_gb"]
    assert rows[fsdp2.name][1]["memory_gb"] < rows[fsdp2.name][0]["memory_gb"] < rows[online.name][0]["memory_gb"]
    assert rows[online.name][0]["reading_ms"] == 0 < rows[ddp.name][0]["reading_ms"]


def test_the_page_has_the_figures_of_the_file():
    figures = json.loads((scaling.ROOT / "benchmarks" / "scaling.json").read_text())
    page = (scaling.ROOT / "docs" / "scaling.md").read_text()
    assert scaling.shown(figures["training"], figures["reading"]) in page
    assert figures["machines"] == scaling.asdict(scaling.Machines())
