"""`llm-modules demo`: one pair per built-in task, against its own two halves, on held-out problems."""

import gc
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llm_modules.baselines import GeneratorAlone
from llm_modules.checksums import write_json
from llm_modules.controls import with_zeroed_knowledge
from llm_modules.data.templates import with_template
from llm_modules.errors import UserError
from llm_modules.evaluation import Evaluation, Score, evaluate
from llm_modules.few_shot import few_shot
from llm_modules.machine import machine
from llm_modules.modeling import CombinedModel
from llm_modules.plots import accuracy_figure, loss_figure, save_figure
from llm_modules.report import summary, write_report
from llm_modules.settings import Settings, load_settings
from llm_modules.source import Source
from llm_modules.speed import measure_speed
from llm_modules.tasks import Task, get_task
from llm_modules.tasks.arithmetic import PAPER_QUESTIONS
from llm_modules.training import build_model, fit, load_data

RECIPES = Path(__file__).parents[1] / "recipes"
SEED = 0
TEST_SEED = 1  # wordings of thoughts were chosen on the test of seed 0
NUM_PROBLEMS = {"arithmetic": 200, "arithmetic-reworded": 400, "facts": None}  # None: all held-out subjects
NUM_ZEROED = 150  # enough to see chance
NUM_EXAMPLES_SHOWN = 8
MAX_NEW_TOKENS = {"arithmetic": 144, "facts": 24}
SPEED = {"new_tokens": 128, "repeats": 3}


@dataclass
class Stopwatch:
    """Names and seconds of what was done."""

    stages: list[dict] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and time it."""
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        yield
        self.stages.append({"name": name, "seconds": time.perf_counter() - start})

    def seconds(self, *names: str) -> float:
        """Of all stages with these names together."""
        return sum(stage["seconds"] for stage in self.stages if stage["name"] in names)


@dataclass
class Contest:
    """A task's trained models and what each scored; `pair` stays loaded.

    `asked` are problems shown but not scored: they were chosen, not drawn. `reworded` is what the trained models scored
    on the task's problems in words that training never shows.
    """

    pair: CombinedModel
    scores: dict[str, Evaluation]
    asked: dict[str, Evaluation]
    parameters: dict[str, int]
    controls: dict[str, Evaluation]
    reworded: dict[str, Evaluation]


def run_demo(output: Path) -> dict:
    """Train, compare, and leave models, pictures, a report and `results.json` in `output`.

    A finished earlier run in `output` is kept under another name.
    """
    if not RECIPES.is_dir():
        raise UserError(f"the demo reads its recipes from {RECIPES}, which is not there; run it from a clone")
    _set_aside(output)
    start = time.perf_counter()
    watch = Stopwatch()
    with watch.stage("loading the default source"):
        source = Source.load("default")
    facts = contest("facts", source, output, watch)
    causal = facts.pair
    arithmetic = contest("arithmetic", source, output, watch)
    with watch.stage("timing: one answer of 128 tokens"):
        speed = measure_speed(source, {"prompt": arithmetic.pair, "causal": causal}, **SPEED)
    results = {
        "minutes": (time.perf_counter() - start) / 60,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "seeds": {"training": SEED, "data": SEED, "test": TEST_SEED},
        "machine": machine(),
        "stages": watch.stages,
        "arithmetic_minutes": watch.seconds("arithmetic: training the pair") / 60,
        "models": _model_rows(arithmetic.scores, arithmetic.parameters),
        "reworded": _model_rows(arithmetic.reworded, arithmetic.parameters),
        "paper_questions": [
            {"question": problem.question, "answer": text.strip(), "correct": correct}
            for problem, text, correct in arithmetic.asked["pair"].answers()
        ],
        "examples": _examples(arithmetic.asked) + _examples(arithmetic.scores),
        "facts": [{"model": name, **_per_kind(found)} for name, found in facts.scores.items()],
        "facts_controls": {
            "pair-zeroed": _per_kind(facts.controls["pair-zeroed"]),
            "chance": _majority(get_task("facts")),
        },
        "facts_examples": _examples(facts.scores),
        "speed": speed,
        "speed_vs_source": {name: speed[name] / speed["source"] for name in ("prompt", "causal")},
        "chat_command": f"llm-modules chat {output / 'arithmetic' / 'model'}",
    }
    write_json(output / "results.json", results)
    page, _ = write_report(results, output)
    print("\n" + summary(results))
    print(f"\nreport:  {page}\nfigures: {output / 'results.json'}")
    return results


def contest(name: str, source: Source, output: Path, watch: Stopwatch) -> Contest:
    """Train pair and generator alone on a task, then ask both, and the source, the same held-out problems."""
    settings = load_settings(RECIPES / f"{name}.yaml")
    task = get_task(name)
    asked = list(PAPER_QUESTIONS) if name == "arithmetic" else []
    problems = [*asked, *task.test(NUM_PROBLEMS[name], seed=TEST_SEED)]
    with watch.stage(f"{name}: training the pair"):
        pair = build_model(settings.model.model_copy(update={"source": source}), seed=SEED)
        pair.tokenizer = tokenizer = with_template(source.tokenizer, settings.data.template)
        data = load_data(settings.data, tokenizer, vocab_size=pair.config.vocab_size)
        losses = {"pair": _fit(pair, data, settings, output / name / "pair", tokenizer)}
        pair.save_pretrained(output / name / "model")
    with watch.stage(f"{name}: training the generator alone, same data and steps"):
        torch.manual_seed(SEED)
        alone = GeneratorAlone.from_config(
            pair.config.generator, vocab_size=pair.config.vocab_size, generation_config=pair.generation_config
        )
        losses["generator"] = _fit(alone, data, _for_alone(settings, name), output / name / "generator", tokenizer)
    save_figure(loss_figure(losses), output / f"{name}-loss.png")

    limit = MAX_NEW_TOKENS[name]
    scores, controls, reworded = {}, {}, {}
    with watch.stage(f"{name}: {len(problems)} held-out problems"):
        scores["source"] = evaluate(
            source.model, task, problems, source.tokenizer, max_new_tokens=limit, label="source"
        )
        scores["source-few-shot"] = few_shot(
            source, task, problems, num_examples=FEW_SHOT[name], seed=SEED, max_new_tokens=limit
        )
        trained = {"generator": alone.eval(), "pair": pair.eval()}
        for model_name, model in trained.items():
            scores[model_name] = evaluate(model, task, problems, tokenizer, max_new_tokens=limit, label=model_name)
        if name == "facts":
            controls["pair-zeroed"] = evaluate(
                with_zeroed_knowledge(pair),
                task,
                problems[:NUM_ZEROED],
                tokenizer,
                max_new_tokens=limit,
                label="pair, zeroed states",
            )
    if name == "arithmetic":
        other = get_task("arithmetic-reworded")
        others = other.test(NUM_PROBLEMS[other.name], seed=TEST_SEED)
        with watch.stage(f"{name}: {len(others)} held-out problems in words that training never shows"):
            for model_name, model in trained.items():
                reworded[model_name] = evaluate(model, other, others, tokenizer, max_new_tokens=limit, label=model_name)
    shown = {model: found.part(0, len(asked)) for model, found in scores.items()} if asked else {}
    scores = {model: found.part(len(asked), len(problems)) for model, found in scores.items()}
    groups = {
        model: {"all": _triple(found.exact), **{kind: _triple(score) for kind, score in found.by_kind.items()}}
        for model, found in {**scores, **controls}.items()
    }
    save_figure(accuracy_figure(groups), output / f"{name}-accuracy.png")
    parameters = {"pair": pair.num_parameters(), "generator": alone.num_parameters()}
    del alone, trained, data
    gc.collect()
    return Contest(pair, scores, shown, parameters, controls, reworded)


# Learning rate of the generator alone where the pair's does not suit it: best of three on training subjects kept apart.
ALONE_LEARNING_RATE = {"facts": 3e-3}
FEW_SHOT = {"arithmetic": 3, "facts": 8}


def _fit(model, data, settings: Settings, output: Path, tokenizer) -> list[dict]:
    training = settings.training.model_copy(update={"output_dir": output, "resume": False})
    trainer = fit(model, data, training, tokenizer=tokenizer)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return trainer.state.log_history


def _for_alone(settings: Settings, name: str) -> Settings:
    if name not in ALONE_LEARNING_RATE:
        return settings
    training = settings.training.model_copy(update={"learning_rate_generator": ALONE_LEARNING_RATE[name]})
    return settings.model_copy(update={"training": training})


def _triple(score: Score) -> tuple[float, float, float]:
    return score.value, *score.interval


def _model_rows(scores: dict[str, Evaluation], parameters: dict[str, int]) -> list[dict]:
    return [
        {"model": name, **score.as_dict(), "trained_parameters": parameters.get(name, 0)}
        for name, score in scores.items()
    ]


def _per_kind(found: Evaluation) -> dict:
    return {
        "exact_match": {kind: score.value for kind, score in found.by_kind.items()},
        "interval": {kind: list(score.interval) for kind, score in found.by_kind.items()},
        "n": {kind: score.n for kind, score in found.by_kind.items()},
        "form": found.form.value,
        "tokens_per_s": found.writing.tokens_per_s,
    }


def _examples(by_model: dict[str, Evaluation]) -> list[dict]:
    """The first questions with everyone's answers, not chosen by result."""
    answers = {
        model: [(problem, {"text": text.strip(), "correct": correct}) for problem, text, correct in found.answers()]
        for model, found in by_model.items()
    }
    return [
        {
            "question": problem.question,
            "expected": problem.answer,
            "answers": {model: given[index][1] for model, given in answers.items()},
        }
        for index, (problem, _) in enumerate(answers["pair"][:NUM_EXAMPLES_SHOWN])
    ]


def _majority(task: Task) -> dict[str, float]:
    """Chance: exact match of always giving the commonest answer of the training subjects."""
    trained, asked = task.train(None, seed=SEED), task.test(None, seed=TEST_SEED)
    shares = {}
    for kind in task.kinds:
        commonest = statistics.mode(problem.answer for problem in trained if problem.kind == kind)
        answers = [problem.answer for problem in asked if problem.kind == kind]
        shares[kind] = answers.count(commonest) / len(answers)
    return shares


def _set_aside(output: Path) -> None:
    if (output / "results.json").is_file():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime((output / "results.json").stat().st_mtime))
        kept = output.with_name(f"{output.name}-{stamp}")
        output.rename(kept)
        print(f"the earlier run is kept in {kept}")
    output.mkdir(parents=True, exist_ok=True)
