"""`python -m benchmarks.leak`: what a bridge that reads the future seems to learn, and what it can then write.

One pair per visibility, all else equal: `bidirectional` (the published wiring), `causal` and `prompt`. Each is judged
twice on the same fresh tokens: teacher-forced, as in training, and as it would decode, given the tokens before only.
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GPTNeoConfig, LlamaConfig

from benchmarks.decoding import RememberingSource, decoding_losses, teacher_forced_losses
from benchmarks.pairs import recipe_of
from benchmarks.results import STYLE, parser, publish, table
from benchmarks.training import Inputs, curve, train_
from llm_modules import CombinedModel, Source
from llm_modules.compare.loop import example_batches
from llm_modules.data.dataset import prepare
from llm_modules.data.templates import Example, with_template
from llm_modules.evaluation import Score, evaluate
from llm_modules.features import with_knowledge
from llm_modules.modeling import LEAK_WARNING
from llm_modules.plots import GREY, INK
from llm_modules.settings import TrainingSettings
from llm_modules.tasks.arithmetic import TASK
from llm_modules.training import build_model

SEED = 0
TEST_SEED = 1
VOCAB = 64
VISIBILITIES = {"bidirectional": "#d55e00", "causal": "#0072b2", "prompt": "#009e73"}
TITLES = {"random": "Random tokens", "arithmetic": "Arithmetic"}
LOSS_TICKS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
TOLERANCE = 1e-3  # nats between two ways to compute the same token's loss in fp32
WITHOUT_FUTURE = ("causal", "prompt")


@dataclass(frozen=True)
class Size:
    """How much is trained and judged; the defaults are the full size."""

    random_steps: int = 1500
    random_length: int = 12
    random_rows: int = 512
    num_examples: int = 1600
    steps: int = 400
    num_problems: int = 42
    num_rows: int = 12
    max_new_tokens: int = 144


SMALL = Size(
    random_steps=120, random_length=5, random_rows=256, num_examples=16, steps=2, num_problems=7, num_rows=1,
    max_new_tokens=4,
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What one pair scored on one kind of data.

    Args:
        data: `random` or `arithmetic`.
        visibility: Of the pair.
        vocab_size: Words it chooses among.
        num_trained: Trained parameters.
        losses: Of every training step.
        teacher_forced: Mean loss in nats on fresh data when the whole row is given.
        decoding: Mean loss in nats on the same tokens when only those before are given.
        exact: Right answers among those written, if there were questions.
    """

    data: str
    visibility: str
    vocab_size: int
    num_trained: int
    losses: Sequence[float]
    teacher_forced: float
    decoding: float
    exact: Score | None = None

    @classmethod
    def of(cls, data: str, model: CombinedModel, losses, forced: Tensor, decoded: Tensor, exact=None) -> "Finding":
        """Average; a pair that reads no future must lose the same both ways, token by token."""
        visibility = model.config.visibility
        if visibility in WITHOUT_FUTURE:
            torch.testing.assert_close(decoded, forced, atol=TOLERANCE, rtol=0)
        means = forced.mean().item(), decoded.mean().item()
        return cls(data, visibility, model.config.vocab_size, model.num_parameters(), losses, *means, exact)

    def as_dict(self) -> dict:
        """For JSON."""
        exact = self.exact and {"hits": self.exact.hits, "n": self.exact.n, "interval": list(self.exact.interval)}
        return {
            "data": self.data,
            "visibility": self.visibility,
            "trained_parameters": self.num_trained,
            "teacher_forced_nats": round(self.teacher_forced, 4),
            "decoding_nats": round(self.decoding, 4),
            "exact_match": exact,
            "training_curve": [(step, round(loss, 4)) for step, loss in curve(self.losses)],
        }


def on_random_tokens(size: Size) -> Iterator[Finding]:
    """Uniformly random tokens: nobody can foretell them, so a loss below ln V has seen them."""
    torch.manual_seed(SEED)
    source = Source.of(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, initializer_range=0.2,
        )
    )  # fmt: skip
    generator = GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=48, num_layers=1, attention_types=[[["global"], 1]], num_heads=4,
        max_position_embeddings=size.random_length, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    settings = TrainingSettings(learning_rate_bridge=5e-3, learning_rate_generator=5e-3, lr_scheduler="linear")
    fresh = next(_random_rows(size.random_rows, size.random_length, seed=TEST_SEED))["input_ids"]
    judged = {"prompt_len": size.random_length // 2, "first": 1}
    for visibility in VISIBILITIES:
        torch.manual_seed(SEED)
        model = CombinedModel.from_modules(
            source,
            generator,
            visibility=visibility,
            head="new",
            start="published",
            num_bridge_layers=2,
            num_heads=4,
            d_adapter=64,
        )
        batches = _random_rows(32, size.random_length, seed=SEED)
        losses = train_(model, batches, settings, steps=size.random_steps, label=f"random tokens, {visibility}")
        forced, decoded = (judge(model, fresh, **judged) for judge in (teacher_forced_losses, decoding_losses))
        yield Finding.of("random", model, losses, forced, decoded)


def _random_rows(rows: int, length: int, *, seed: int) -> Iterator[Inputs]:
    """Batches of uniformly random tokens, every one a label, the first half of each row its prompt."""
    numbers = torch.Generator().manual_seed(seed)
    is_prompt = (torch.arange(length) < length // 2).expand(rows, length)
    while True:
        ids = torch.randint(VOCAB, (rows, length), generator=numbers)
        yield {"input_ids": ids, "labels": ids, "prompt_mask": is_prompt}


def on_arithmetic(size: Size) -> Iterator[Finding]:
    """The recipe `arithmetic` with another visibility; the source reads every text once for all three pairs."""
    settings = recipe_of("prompt")
    source = Source.load("default")
    tokenizer = with_template(source.tokenizer, settings.data.template)
    problems = TASK.test(size.num_problems, seed=TEST_SEED)
    trained, judged = (
        prepare(
            [problem.messages() for problem in chosen], tokenizer, max_length=settings.data.max_length,
            vocab_size=source.config.vocab_size,
        )[0]
        for chosen in (TASK.train(size.num_examples, seed=SEED), problems[: size.num_rows])
    )  # fmt: skip
    for visibility in VISIBILITIES:
        choices = {"visibility": visibility, "start": "published", "source": source}
        model = build_model(settings.model.model_copy(update=choices), seed=SEED)
        if visibility == "bidirectional":  # first: `causal` needs the same states, `prompt` their beginning
            trained = with_knowledge(model, trained, label="source reads training data")
            judged = with_knowledge(model, judged, label="source reads test data")
        batches = example_batches(model, trained, settings.training, tokenizer)
        losses = train_(model, batches, settings.training, steps=size.steps, label=f"arithmetic, {visibility}")
        forced, decoded = _judge_examples(model, judged)
        if visibility == "bidirectional":
            model.source = RememberingSource(source)
        limit = size.max_new_tokens
        found = evaluate(model, TASK, problems, tokenizer, max_new_tokens=limit, label=f"{visibility} writes")
        yield Finding.of("arithmetic", model, losses, forced, decoded, found.exact)


def _judge_examples(model: CombinedModel, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Losses of all response tokens, teacher-forced and when decoding."""
    found: list[list[Tensor]] = [[], []]
    for example in tqdm(examples, desc=f"{model.config.visibility}: every prefix", unit=" rows"):
        assert example.knowledge is not None  # read before
        prompt_len = len(example.prompt_ids)
        row = {"prompt_len": prompt_len, "first": prompt_len, "states": example.knowledge[None]}
        for losses, judge in zip(found, (teacher_forced_losses, decoding_losses), strict=True):
            losses.append(judge(model, torch.tensor([example.input_ids]), **row)[0])
    return torch.cat(found[0]), torch.cat(found[1])


def leak_table(findings: Sequence[Finding]) -> str:
    """A row for each pair."""
    head = ["data", "visibility", "trained parameters", "loss, teacher-forced", "loss when decoding", "exact match"]
    rows = [
        [
            f"{TITLES[found.data].lower()}, ln V = {math.log(found.vocab_size):.3f}",
            f"`{found.visibility}`" + " (published)" * (found.visibility == "bidirectional"),
            f"{found.num_trained / 1e6:.2f} M",
            f"{found.teacher_forced:.3f}",
            f"{found.decoding:.3f}",
            "–" if found.exact is None else str(found.exact),
        ]
        for found in findings
    ]
    return table(head, rows)


def leak_figure(findings: Sequence[Finding]) -> Figure:
    """Per data set: training loss over steps, and beside it fresh data, teacher-forced (ring) and decoding (dot)."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 4, figsize=(11, 4.2), width_ratios=[3, 1.6, 3, 1.6])
        for data, (training, judged) in zip(TITLES, (panels[:2], panels[2:]), strict=True):
            _draw(training, judged, [found for found in findings if found.data == data])
            training.set_title(TITLES[data])
            judged.set_title("fresh data", fontweight="normal", color=GREY)
        panels[0].set_ylabel("loss (nats per token)")
        for visibility, colour in VISIBILITIES.items():
            panels[2].plot([], [], color=colour, lw=3, label=visibility)
        panels[3].plot([], [], "o", mfc="white", mec=INK, label="teacher-forced")
        panels[3].plot([], [], "o", color=INK, label="when decoding")
        figure.legend(loc="outside lower center", ncols=5)
    return figure


def _draw(training: Axes, judged: Axes, findings: Sequence[Finding]) -> None:
    chance = math.log(findings[0].vocab_size)
    for place, found in enumerate(findings):
        colour = VISIBILITIES[found.visibility]
        training.plot(*zip(*curve(found.losses), strict=True), color=colour, lw=1.5)
        ends = [found.teacher_forced, found.decoding]
        judged.plot([place, place], ends, color=colour, lw=2)
        judged.plot(place, ends[1], "o", color=colour, ms=8)
        judged.plot(place, ends[0], "o", mfc="white", mec=colour, mew=2, ms=8)
    judged.sharey(training)
    judged.tick_params(labelleft=False)
    judged.set(xlim=(-0.6, len(findings) - 0.4), xticks=[])
    training.set_xlabel("training step")
    highest = max(found.decoding for found in findings)
    if highest < chance:  # what differs lies far below chance
        training.set_yscale("log")
        training.set_yticks(LOSS_TICKS, LOSS_TICKS)
        training.minorticks_off()
    else:
        training.set_ylim(0, 1.1 * highest)
    for axes in (training, judged):
        axes.axhline(chance, color=GREY, ls="--", lw=1)
    training.annotate(f"ln V = {chance:.2f}", (1, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and judge the three pairs on both kinds of data."""
    options = parser("leak", __doc__)
    options.add_argument("--steps", type=int, help=f"training steps on arithmetic (default: {Size.steps})")
    given = options.parse_args(arguments)
    size = SMALL if given.quick else Size()
    if given.steps:
        size = replace(size, steps=given.steps)
    started = time.perf_counter()
    print(f"seed {SEED}, test seed {TEST_SEED}, {size}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=LEAK_WARNING.split(":")[0])  # the leak is what is measured
        findings = [*on_random_tokens(size), *on_arithmetic(size)]
    publish(
        "leak",
        given,
        command="python -m benchmarks.leak" + f" --steps {given.steps}" * bool(given.steps),
        measured=leak_table(findings),
        figure=leak_figure(findings),
        results={
            "seed": SEED,
            "test_seed": TEST_SEED,
            "size": asdict(size),
            "entropy_of_random_tokens_nats": math.log(VOCAB),
            "findings": [found.as_dict() for found in findings],
        },
        started=started,
    )


if __name__ == "__main__":
    main()
