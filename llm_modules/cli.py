"""The command line: thin verbs over the library."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer

from llm_modules.errors import SharedError, UserError
from llm_modules.serving.limits import Limits

app = typer.Typer(
    help="LLM Modules: a frozen large language model plus a small trainable partner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(help="YAML file; see recipes/.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override settings, as training.seed=1.")
]
Model = Annotated[Path, typer.Argument(help="Folder of a trained model.", show_default=False)]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest word; the paper used 0.9.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample among so many likeliest words; 0 for all.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest words with this total.")]
Seed = Annotated[int, typer.Option(help="Seed of sampling or of the problems.")]
SHARED_VERBS = ("train", "extract", "evaluate")  # what several processes can do together


def _plain_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as a sentence, without the line of code that raised it."""
    typer.secho(f"warning: {message}", fg=typer.colors.YELLOW, err=True)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--rates {text!r} is no list of numbers; give some, as 3e-4,1e-3") from error


def _launched() -> tuple[int, int]:
    """Which process this is of how many that a launcher started to meet; 0 of 1 without one."""
    num = int(os.environ.get("WORLD_SIZE", 1)) if "MASTER_ADDR" in os.environ else 1
    return (int(os.environ.get("RANK", 0)) if num > 1 else 0), num


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing but errors from the processes after the first."""
    os.environ["TQDM_DISABLE"] = "1"  # read when a verb imports tqdm
    warnings.simplefilter("ignore")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def _plain_errors(command: Callable) -> Callable:
    """Print what a user can act on without a traceback."""

    @wraps(command)
    def run(*args, **kwargs):
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when a verb imports transformers
        warnings.showwarning = _plain_warning
        rank, num = _launched()
        try:
            if num > 1 and command.__name__ not in SHARED_VERBS:
                raise UserError(
                    f"llm-modules {command.__name__} runs in one process, and {num} were launched; start it alone"
                )
            with _silence() if rank else nullcontext():
                return command(*args, **kwargs)
        except UserError as error:
            if isinstance(error, SharedError) and rank:
                time.sleep(1)  # the launcher ends all when one has ended: the first is to tell it before
            else:
                who = f" (process {rank} of {num})" if num > 1 else ""
                typer.secho(f"error{who}: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("\ninterrupted", err=True)
            raise typer.Exit(130) from None

    return run


@app.command()
@_plain_errors
def demo(
    output: Annotated[Path, typer.Option(help="Folder for models, pictures and report.")] = Path("runs/demo"),
) -> None:
    """Train a pair on each built-in task and compare it with its two halves, measured."""
    from llm_modules.demo import run_demo

    run_demo(output)


@app.command()
@_plain_errors
def plan(
    config: Config,
    overrides: Overrides = None,
    tflops: Annotated[float, typer.Option(min=1e-6, help="10^12 operations a second that the device sustains.")] = 50.0,
    gb_per_s: Annotated[float, typer.Option(min=1e-6, help="10^9 bytes a second to and from its memory.")] = 300.0,
    dollars_per_hour: Annotated[float, typer.Option(min=0.0, help="Price of the device.")] = 0.8,
    examples: Annotated[int | None, typer.Option(min=2, help="Examples, where the data do not lie here.")] = None,
    tokens_per_example: Annotated[float | None, typer.Option(min=2, help="Their mean tokens, as trained on.")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="Mean tokens of their prompts.")] = None,
) -> None:
    """Say what a recipe needs before it runs: memory, hours, dollars, disk. Loads no weights."""
    from llm_modules.settings import load_settings

    settings = load_settings(config, overrides)
    from llm_modules.corpus import Given
    from llm_modules.planning import plan as make_plan

    given = Given(examples=examples, tokens_per_example=tokens_per_example, prompt_tokens=prompt_tokens)
    typer.echo(make_plan(settings, given=given, tflops=tflops, gb_per_s=gb_per_s, dollars_per_hour=dollars_per_hour))


@app.command()
@_plain_errors
def train(config: Config, overrides: Overrides = None) -> None:
    """Train a pair from a YAML file."""
    from llm_modules.settings import load_settings

    settings = load_settings(config, overrides)
    from llm_modules.training import train as run_training  # slow to import: mistakes in the file are told first

    run_training(settings, command=["llm-modules", "train", str(config), *(overrides or [])])


@app.command()
@_plain_errors
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file; see sweeps/ and docs/sweep.md.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of every point, or of the sweep as evaluation.seed=1."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for figures, table and page; left out, runs/sweeps/ and FILE's name.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once: more than one pays on a GPU or many cores.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be trained.")] = False,
) -> None:
    """Train and judge every point of a grid or list of settings; the same command goes on where it was stopped."""
    from llm_modules.sweep_file import load_sweep

    found = load_sweep(file, overrides or [])
    from llm_modules.sweep import sweep as run_sweep  # slow to import: mistakes in the file are told first

    options = [*(overrides or []), *([] if out is None else ["--out", str(out)])]
    options += ["--jobs", str(jobs)] if jobs > 1 else []
    command = ["llm-modules", "sweep", str(file), *options]
    if run_sweep(found, output=out, dry_run=dry_run, command=command, jobs=jobs):
        raise typer.Exit(1)


@app.command()
@_plain_errors
def extract(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the store; left out, the cache's, where features=auto finds it.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Stored as float32, bfloat16, float16 or int8; left out, as the source computes.")
    ] = None,
    process: Annotated[int, typer.Option(min=0, envvar="RANK", help="Which of several processes this is, from 0.")] = 0,
    num_processes: Annotated[
        int, typer.Option(min=1, envvar="WORLD_SIZE", help="How many processes share the shards.")
    ] = 1,
) -> None:
    """Let the source read a recipe's examples once, into a store that every epoch and every run reads."""
    from llm_modules.settings import load_settings

    settings = load_settings(config, [*(overrides or []), *([f"training.features_dtype={dtype}"] if dtype else [])])
    from llm_modules.extract import extract as run_extraction

    run_extraction(settings, out=out, process=process, num_processes=num_processes)


@app.command()
@_plain_errors
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="What to ask.", show_default=False)],
    system: Annotated[str | None, typer.Option(help="System message before it.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 100,
    top_p: TopP = 0.98,
    seed: Seed = 0,
) -> None:
    """Answer one prompt, streamed to standard output."""
    from llm_modules.chat import Conversation, Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    conversation = Conversation.load(model, sampling, system=system)
    for piece in conversation.ask(prompt):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
@_plain_errors
def chat(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Folders of trained models on one source.", show_default=False),
    ],
    system: Annotated[str | None, typer.Option(help="System message before the conversation.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 100,
    top_p: TopP = 0.98,
    seed: Seed = 0,
) -> None:
    """Talk to trained models and to the source they share; /help lists the commands, /exit leaves."""
    from llm_modules.chat import Sampling
    from llm_modules.terminal import chat as start_chat

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    start_chat(models, sampling, system=system)


@app.command()
@_plain_errors
def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="FOLDER or NAME=FOLDER of each.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="LLM_MODULES_API_KEY", help="What clients must show; better set in the environment."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web page elsewhere that may ask, as https://example.org; repeatable.")
    ] = None,
    allow_loading: Annotated[
        Path | None, typer.Option(help="Folder that modules may be loaded from while the server runs.")
    ] = None,
    max_at_once: Annotated[int, typer.Option(min=8, help="Answers written side by side.")] = Limits.max_at_once,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that wait; more are refused.")] = Limits.max_waiting,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a prompt.")] = Limits.max_prompt_tokens,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = Limits.max_new_tokens,
    max_shared_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of late prompts of which the source's reading is kept.")
    ] = Limits.max_shared_tokens,
    timeout_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds from a request to the end of its answer.")
    ] = Limits.timeout_s,
) -> None:
    """Serve trained models, and their source, to any client of OpenAI's interface, with a web page."""
    from llm_modules.serving.address import listening

    limits = Limits(
        max_at_once=max_at_once,
        max_waiting=max_waiting,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        timeout_s=timeout_s,
        max_shared_tokens=max_shared_tokens,
    )
    with listening(host, port) as listener:  # the rest is slow to import: an address that is taken is told first
        try:
            from llm_modules.serving.server import serve as run_server
        except ModuleNotFoundError as error:
            raise UserError(f"serving needs {error.name}; install it: pip install 'llm-modules[serve]'") from error
        run_server(
            models,
            listener=listener,
            api_key=api_key,
            origins=allow_origin or (),
            loading_from=allow_loading,
            limits=limits,
        )


@app.command()
@_plain_errors
def evaluate(
    model: Model,
    task: Annotated[
        str,
        typer.Option(
            help="arithmetic, arithmetic-reworded, facts, tickets, reasoning-gym:NAME; with --data: gsm8k, "
            "math-word-problems, jsonl.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="File of the problems, where the task reads one; all of it is asked.")
    ] = None,
    verifier: Annotated[
        str | None, typer.Option(help="With --task jsonl: exact, numeric, regex or choice.", show_default=False)
    ] = None,
    num_problems: Annotated[
        int | None, typer.Option(min=1, help="Problems to ask; left out, all of --data, else 200.")
    ] = None,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 160,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file too.")] = None,
) -> None:
    """Measure exact match on held-out problems of a task, or on those of a file."""
    from llm_modules.tasks import get_task

    chosen = get_task(task, data=data, verifier=verifier)
    problems = chosen.test(num_problems or (None if data else 200), seed=seed)
    from llm_modules.examination import examine  # slow to import: a wrong file is told first

    figures = examine(model, chosen, problems, seed=seed, max_new_tokens=max_new_tokens, echo=typer.echo)
    if json is not None and _launched()[0] == 0:
        from llm_modules.checksums import write_json

        asked = {"model": str(model), "task": task, "data": data, "verifier": verifier, "seed": seed}
        write_json(json, {key: value for key, value in asked.items() if value is not None} | figures)


@app.command()
@_plain_errors
def compare(
    config: Config,
    overrides: Overrides = None,
    budget: Annotated[
        str | None, typer.Option(help="Training of each row: 300s, 5m, or 2e15flops.", show_default="300s; quick: 60s")
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="Learning rates that each row tries.", show_default="3e-4,1e-3,3e-3; quick: two")
    ] = None,
    num: Annotated[int | None, typer.Option(min=2, help="Test problems.", show_default="200; quick: 50")] = None,
    rows: Annotated[
        str | None, typer.Option(help="Only these, as pair,generator,lora; all: docs/compare.md.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training runs of each row.")] = 1,
    test: Annotated[
        str | None, typer.Option(help="File of the test problems, where the configuration names a train_file.")
    ] = None,
    verifier: Annotated[
        str | None, typer.Option(help="Without a task: exact, numeric, regex or choice.", show_default=False)
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="JSONL of model, question, answer: given, not measured.", show_default=False)
    ] = None,
    ask: Annotated[
        list[str] | None, typer.Option(help="Question to answer side by side; may be repeated.", show_default=False)
    ] = None,
    max_new_tokens: MaxNewTokens = 160,
    quick: Annotated[
        bool, typer.Option("--quick", help="All within 15 minutes; rows without time are left out.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on there.")] = Path("runs/compare"),
) -> None:
    """Train and judge a pair and what else the same budget buys: its halves, LoRA, distillation and others."""
    from llm_modules.compare.plan import FULL, QUICK, Plan
    from llm_modules.settings import load_settings

    meant = QUICK if quick else FULL
    made = Plan(
        settings=load_settings(config, overrides),
        budget=budget or meant["budget"],
        rates=_numbers(rates or meant["rates"]),
        num=num or meant["num"],
        test=test,
        verifier=verifier,
        seeds=seeds,
        ask=tuple(ask or ()),
        max_new_tokens=max_new_tokens,
        limit_s=meant["limit_s"],
    )
    made.check()
    from llm_modules.compare.run import compare as run_comparison  # slow to import: mistakes are told first

    run_comparison(made, rows=rows.split(",") if rows else [], answers=answers, output=out)


@app.command()
@_plain_errors
def probe(
    model: Model,
    task: Annotated[str | None, typer.Option(help="Built-in task: arithmetic or facts.")] = None,
    data: Annotated[str | None, typer.Option(help="Or held-out records: a file, a folder or a hub id.")] = None,
    num: Annotated[int, typer.Option(min=2, help="Held-out questions to ask.")] = 100,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 160,
    out: Annotated[Path, typer.Option(help="Folder for figures, report and pictures.")] = Path("runs/probe"),
) -> None:
    """Measure what a pair lives by: its source's states taken, swapped or faked, its layers shut; and what it reads."""
    from llm_modules.probe import probe as run_probe

    run_probe(model, task=task, data=data, num=num, seed=seed, max_new_tokens=max_new_tokens, output=out)


@app.command()
@_plain_errors
def inspect(
    model: Model,
    prompt: Annotated[str, typer.Option(help="What to ask.", show_default=False)],
    system: Annotated[str | None, typer.Option(help="System message before it.")] = None,
    answer: Annotated[str | None, typer.Option(help="Watch it write this, not what it would write.")] = None,
    max_new_tokens: MaxNewTokens = 64,
    out: Annotated[Path, typer.Option(help="Folder for the page and the pictures.")] = Path("runs/inspect"),
) -> None:
    """Show what each token of an answer was written from: gates and attention, as a web page and as pictures."""
    from llm_modules.inspection import inspect_folder

    for file in inspect_folder(
        model, prompt=prompt, system=system, answer=answer, max_new_tokens=max_new_tokens, output=out
    ):
        typer.echo(file)


@app.command()
@_plain_errors
def doctor(
    place: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Of a run, model, store, sweep or comparison.", show_default=False),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what lies in a folder, what of it is broken and what to do; exit code 1 if anything is broken."""
    from llm_modules.doctor import doctor as run_doctor

    if run_doctor(place, as_json=json):
        raise typer.Exit(1)


@app.command()
@_plain_errors
def import_reference(
    checkpoint: Annotated[Path, typer.Argument(help="File that the published code saved.", show_default=False)],
    source: Annotated[str, typer.Option(help="Id or folder of the source it was trained with.", show_default=False)],
    generator: Annotated[
        str, typer.Option(help="Id or folder of its generator; the config.json is enough.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="New folder for the model.", show_default=False)],
    num_heads: Annotated[int, typer.Option(min=1, help="Heads of the bridge; 8, as published.")] = 8,
    sha256: Annotated[str | None, typer.Option(help="Refuse any other file.", show_default=False)] = None,
) -> None:
    """Make a model folder from a checkpoint of the published code, checked tensor by tensor."""
    from llm_modules.published import import_folder

    import_folder(checkpoint, out, source=source, generator=generator, num_heads=num_heads, sha256=sha256)


if __name__ == "__main__":
    app()
