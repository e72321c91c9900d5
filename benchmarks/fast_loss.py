"""`python -m benchmarks.fast_loss`: what a loss over part of the vocabulary costs in accuracy.

The built-in task `facts` by its recipe, once with the recipe's `sampled_words` and once over the full vocabulary; all
else equal. Both answer the same held-out questions.
"""

import tempfile
import time
from collections.abc import Sequence

from benchmarks.results import RECIPES, parser, publish, table
from llm_modules import Source
from llm_modules.bootstrap import bootstrap
from llm_modules.data.templates import with_template
from llm_modules.evaluation import evaluate
from llm_modules.settings import load_settings
from llm_modules.tasks import get_task
from llm_modules.training import build_model, fit, load_data

SEED, TEST_SEED = 0, 1
NUM_PROBLEMS, MAX_NEW_TOKENS = 1000, 40  # all held-out questions there are


def main(arguments: Sequence[str] | None = None) -> None:
    """Train twice, ask both, print and publish."""
    given, started = parser("fast_loss", __doc__.partition("\n")[0]).parse_args(arguments), time.perf_counter()
    source, task, right, rows = Source.load("default"), get_task("facts"), {}, []
    problems = task.test(10 if given.quick else NUM_PROBLEMS, seed=TEST_SEED)
    for name, changes in (("full vocabulary", ["training.sampled_words=null"]), ("sampled", [])):
        with tempfile.TemporaryDirectory() as folder:
            settings = load_settings(RECIPES / "facts.yaml", [f"training.output_dir={folder}/run", *changes])
            if given.quick:
                short = settings.training.model_copy(update={"max_steps": 2, "eval_steps": 2, "save_steps": 2})
                settings = settings.model_copy(update={"training": short})
            model = build_model(settings.model.model_copy(update={"source": source}), seed=SEED)
            tokenizer = with_template(source.tokenizer, settings.data.template)
            data = load_data(settings.data, tokenizer, vocab_size=model.config.vocab_size)
            trainer = fit(model, data, settings.training, tokenizer=tokenizer)
        seconds = trainer.state.log_history[-1]["train_runtime"]
        found = evaluate(model.eval(), task, problems, tokenizer, max_new_tokens=MAX_NEW_TOKENS, label=name)
        right[name] = [float(verdict.correct) for verdict in found.verdicts]
        rows.append([name, str(found.exact), f"{seconds:.0f}"])
    less = bootstrap([a - b for a, b in zip(right["sampled"], right["full vocabulary"], strict=True)], seed=SEED)
    measured = (
        f"{table(('loss over', 'exact match', 'seconds of training'), rows)}\n\nSampled less full: "
        f"{100 * less.value:+.1f} points (95 %: {100 * less.low:+.1f} to {100 * less.high:+.1f}; paired bootstrap)."
    )
    publish(
        "performance", given, command="python -m benchmarks.fast_loss", block="fast-loss", started=started,
        measured=measured, results={"seed": SEED, "difference": [less.value, less.low, less.high], "rows": rows},
    )  # fmt: skip


if __name__ == "__main__":
    main()
