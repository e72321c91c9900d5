"""`python -m benchmarks.facts_folds`: the facts of every country and element, each asked when its subject was held out.

Fold k trains the pair by `recipes/facts.yaml` on the subjects of the other folds and asks it, and the source with
examples in its context (from the same subjects), everything about its own. A fold that is finished is kept in its
folder of `runs/facts-folds` and not run again.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import RECIPES, folder_of, parser, publish, table
from llm_modules.evaluation import Evaluation, Score, evaluate
from llm_modules.few_shot import few_shot
from llm_modules.files import write_text
from llm_modules.loading import load_trained
from llm_modules.settings import load_settings
from llm_modules.source import Source
from llm_modules.tasks.facts import FactsTask, of_fold
from llm_modules.training import train

SEED, NUM_SHOTS, MAX_NEW_TOKENS = 0, 8, 24
PAIRS = {
    "pair, causal": [],  # the recipe
    # a start as the source is no help to what writes without it: more and faster training instead
    "pair, prompt": [
        "model.visibility=prompt", "model.start=published", "model.taps=[0, 15, -1]", "training.num_epochs=12",
        "training.optimizer=muon", "training.learning_rate_bridge=2e-3", "training.learning_rate_generator=2e-3",
    ],
}  # fmt: skip
ONCE = "pair, prompt"  # in the first fold alone: it trains longest, and is far behind
FEW_SHOT = "source, few-shot"


def run_fold(number: int, num_folds: int, *, folder: Path, quick: bool) -> dict[str, dict[str, list[int]]]:
    """Right answers and questions of each relation, by who was asked."""
    done = folder / "result.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    task = of_fold(number, num_folds)
    training, asked = folder / "training.jsonl", task.test(10 if quick else None, seed=SEED)
    lines = (json.dumps({"messages": one.messages()}) for one in task.train(32 if quick else None, seed=SEED))
    write_text(training, "".join(f"{line}\n" for line in lines))
    found: dict[str, Evaluation] = {}
    for name, changes in PAIRS.items():
        if name == ONCE and number:
            continue
        settings = load_settings(
            RECIPES / "facts.yaml",
            [
                "data.task=null", f"data.train_file={training}", "training.resume=auto",
                f"training.output_dir={folder / name.replace(', ', '-')}", *changes,
            ],
        )  # fmt: skip
        model, tokenizer = load_trained(train(settings))
        found[name] = evaluate(model, task, asked, tokenizer, max_new_tokens=MAX_NEW_TOKENS, label=name)
    found[FEW_SHOT] = few_shot(
        Source.load("default"), task, asked, num_examples=NUM_SHOTS, seed=SEED, max_new_tokens=MAX_NEW_TOKENS
    )
    figures = {name: {kind: [one.hits, one.n] for kind, one in each.by_kind.items()} for name, each in found.items()}
    commonest = _commonest(task)
    figures["chance"] = {
        kind: [sum(one.answer == commonest[kind] for one in asked if one.kind == kind), figures[FEW_SHOT][kind][1]]
        for kind in figures[FEW_SHOT]
    }
    write_text(done, json.dumps(figures, indent=1) + "\n")
    return figures


def _commonest(task: FactsTask) -> dict[str, str]:
    """The answer given most often in training, by relation."""
    trained = task.train(None, seed=SEED)
    return {kind: statistics.mode(one.answer for one in trained if one.kind == kind) for kind in task.kinds}


def _pooled(folds: Sequence[dict], name: str, kind: str) -> Score:
    """Over the folds in which it was asked."""
    return Score(*map(sum, zip(*(fold[name][kind] for fold in folds if name in fold), strict=True)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every fold, print and publish."""
    options = parser("facts_folds", __doc__.partition("\n")[0])
    options.add_argument("--num-folds", type=int, default=4, help="parts into which the subjects are divided")
    given, started = options.parse_args(arguments), time.perf_counter()
    runs = folder_of(given) / ("facts-folds" if given.quick or given.output else "runs/facts-folds")
    folds = [
        run_fold(number, given.num_folds, folder=runs / f"{number}-of-{given.num_folds}", quick=given.quick)
        for number in range(given.num_folds)
    ]
    pooled = {name: {kind: _pooled(folds, name, kind) for kind in kinds} for name, kinds in folds[0].items()}
    rows = [[kind, *(str(pooled[name][kind]) for name in pooled)] for kind in pooled[FEW_SHOT]]
    sources = {kind: score.value or float("nan") for kind, score in pooled[FEW_SHOT].items()}
    causal = next(iter(PAIRS))
    of_source = {kind: pooled[causal][kind].value / sources[kind] for kind in sources}
    for row in rows:
        row.append(f"{of_source[row[0]]:.2f}")
    head = ["relation", *pooled, f"{causal} / few-shot"]
    publish(
        "evidence", given, command="python -m benchmarks.facts_folds", started=started, measured=table(head, rows),
        results={
            "seed": SEED, "num_folds": given.num_folds, "of_few_shot": of_source,
            "right": {name: {kind: [one.hits, one.n] for kind, one in kinds.items()} for name, kinds in pooled.items()},
        }, block="facts-folds",
    )  # fmt: skip


if __name__ == "__main__":
    main()
