"""`python -m benchmarks.word_problems ../shared/data/math_word_problems`: five-fold ASDiv-A by the recipe.

Fold k trains on `asdiv_fold{k}_train.csv` alone and is asked all of `asdiv_fold{k}_dev.csv`, once. A fold that is
finished is kept in its folder of `runs/word-problems` and not trained again.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import RECIPES, folder_of, parser, publish, table
from llm_modules.evaluation import Score, evaluate
from llm_modules.files import write_text
from llm_modules.loading import load_trained
from llm_modules.settings import load_settings
from llm_modules.tasks import get_task
from llm_modules.training import train

TASK, NUM_FOLDS, MAX_NEW_TOKENS = "math-word-problems", 5, 24
AS_MEASURED = ["data.variations=0", "training.num_epochs=12"]  # variations are for files with irrelevant numbers
PUBLISHED = {"LSTM seq2seq with RoBERTa": 76.9, "GTS with RoBERTa": 81.2, "Graph2Tree with RoBERTa": 82.2}


def run_fold(data: Path, fold: int, *, folder: Path, quick: bool) -> dict:
    """Train on one fold's training file and judge on its test file; figures for JSON."""
    done = folder / "result.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    changes = [f"data.train_file={data}/asdiv_fold{fold}_train.csv", f"training.output_dir={folder}"]
    changes += ["training.resume=auto", *AS_MEASURED, *(["data.num_examples=8"] if quick else [])]
    settings = load_settings(RECIPES / "math-word-problems.yaml", changes)
    started = time.perf_counter()
    model, tokenizer = load_trained(train(settings))
    trained = time.perf_counter()
    task = get_task(TASK, data=data / f"asdiv_fold{fold}_dev.csv")
    found = evaluate(
        model, task, task.test(8 if quick else None, seed=0), tokenizer, max_new_tokens=MAX_NEW_TOKENS, label=TASK
    )
    figures = found.as_dict() | {
        "hits": found.exact.hits,
        "minutes_training": (trained - started) / 60,
        "minutes_answering": (time.perf_counter() - trained) / 60,
        "parameters": model.num_parameters(),
    }
    write_text(done, json.dumps(figures, indent=1) + "\n")
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every fold, print and publish."""
    options = parser("word_problems", __doc__.partition("\n")[0])
    options.add_argument("data", type=Path, help="folder with asdiv_fold{0..4}_{train,dev}.csv")
    options.add_argument("--folds", type=int, nargs="+", default=list(range(NUM_FOLDS)), help="some of them")
    given, started = options.parse_args(arguments), time.perf_counter()
    runs = folder_of(given) / ("word-problems" if given.quick or given.output else "runs/word-problems")
    figures = {fold: run_fold(given.data, fold, folder=runs / f"fold{fold}", quick=given.quick) for fold in given.folds}
    pooled = Score(sum(found["hits"] for found in figures.values()), sum(found["n"] for found in figures.values()))
    rows = [
        [str(fold), str(Score(found["hits"], found["n"])), f"{found['minutes_training']:.1f}"]
        for fold, found in figures.items()
    ]
    rows.append(["pooled", str(pooled), f"{sum(found['minutes_training'] for found in figures.values()):.1f}"])
    beside = "; ".join(f"{name} {figure}" for name, figure in PUBLISHED.items())
    measured = f"{table(('fold', 'right', 'minutes of reading and training'), rows)}\n\nPublished: {beside}."
    publish(
        "word-problems", given, command="python -m benchmarks.word_problems", started=started, measured=measured,
        results={"seed": 0, "pooled": pooled.value, "interval": list(pooled.interval), "folds": figures},
    )  # fmt: skip


if __name__ == "__main__":
    main()
