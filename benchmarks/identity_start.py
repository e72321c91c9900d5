"""`python -m benchmarks.identity_start gsm8k/train.jsonl`: a pair that starts as its source.

School problems with worked steps (GSM8K's fields `question` and `answer`) become thought and solution sections. The
pair is that of `recipes/own-data.yaml`: visibility `causal`, head `source`, start `identity`.
"""

import json
import math
import random
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from benchmarks.results import RECIPES, STYLE, parser, publish, table
from benchmarks.training import Inputs, curve, train_
from llm_modules import CombinedModel, Source, UserError
from llm_modules.compare.loop import example_batches, with_given_knowledge
from llm_modules.data.dataset import Collator, padding_id, prepare
from llm_modules.data.records import Conversation
from llm_modules.data.templates import Example, with_template
from llm_modules.features import with_knowledge
from llm_modules.loss import IGNORED
from llm_modules.plots import GREY
from llm_modules.settings import load_settings
from llm_modules.tasks import stratos
from llm_modules.training import build_model

SEED = 0
TOLERANCE = 1e-4  # nats between the pair's step 0 and the source
PUBLISHED_STEP_0 = 13.8  # nats, with a vocabulary of 151,936
SAMPLED_WORDS = 2000
EVAL_BATCH = 4  # the source's logits over its whole vocabulary are held at once
CALCULATOR = re.compile(r"<<[^<>]*>>")
TAGS = re.compile("|".join(map(re.escape, stratos.render("", "").split())))
COLOURS = {"all": "#0072b2", "text": "#009e73"}
NAMES = {"all": "all response tokens", "text": "worked steps and answer, without tags"}


@dataclass(frozen=True)
class Size:
    """How much is read and trained; the defaults are the full size."""

    num_training: int = 300
    num_unseen: int = 50
    max_length: int = 256
    steps: int = 150
    eval_steps: int = 25


SMALL = Size(num_training=12, num_unseen=4, max_length=192, steps=12, eval_steps=6)


@dataclass(frozen=True)
class Loss:
    """Mean loss in nats over response tokens.

    Args:
        all: Over all of them.
        text: Over those that are not part of a section tag or the end of the text: the form is soon learned and would
            hide the rest.
    """

    all: float
    text: float


def to_conversation(record: dict[str, str]) -> Conversation:
    """A GSM8K record in Stratos form: worked steps as the thought, the last line's number as the solution."""
    steps, mark, answer = CALCULATOR.sub("", record["answer"]).rpartition("\n#### ")
    if not mark:
        raise UserError(f"an answer must end with a line '#### number', this one does not: {record['answer']!r}")
    response = stratos.render(steps.strip(), answer.strip())
    return [{"role": "user", "content": record["question"]}, {"role": "assistant", "content": response}]


def read_problems(
    path: Path, tokenizer: PreTrainedTokenizerBase, size: Size, *, vocab_size: int
) -> tuple[list[Example], list[Example]]:
    """Problems to train on and unseen ones, drawn by seed among those of at most `size.max_length` tokens."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = size.num_training + size.num_unseen
    drawn = random.Random(SEED).sample(records, min(len(records), 4 * wanted))
    examples, _ = prepare(map(to_conversation, drawn), tokenizer, max_length=size.max_length, vocab_size=vocab_size)
    if len(examples) < wanted:
        raise UserError(f"{path} gives {len(examples)} problems of at most {size.max_length} tokens, not {wanted}")
    return examples[: size.num_training], examples[size.num_training : wanted]


def is_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Which response tokens are neither part of a tag nor the end of the text."""
    pieces = [tokenizer.decode([token]) for token in example.response_ids]
    starts = [sum(map(len, pieces[:index])) for index in range(len(pieces))]
    tags = [match.span() for match in TAGS.finditer("".join(pieces))]
    return [
        token != tokenizer.eos_token_id and not any(start < end and begin < start + len(piece) for begin, end in tags)
        for token, start, piece in zip(example.response_ids, starts, pieces, strict=True)
    ]


class Unseen:
    """Problems that are never trained on, in batches, with the labels of their text apart.

    Args:
        examples: With their knowledge.
        tokenizer: The one they were encoded with.
        vocab_size: The source's.
    """

    def __init__(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, vocab_size: int):
        collate = Collator(padding_id(tokenizer, vocab_size=vocab_size))
        ordered = sorted(examples, key=len)
        self.batches: list[tuple[Inputs, Tensor]] = []
        for start in range(0, len(ordered), EVAL_BATCH):
            batch = ordered[start : start + EVAL_BATCH]
            inputs = with_given_knowledge(collate(batch))
            text = inputs["labels"].clone()
            for row, example in enumerate(batch):
                kept = torch.tensor([False] * len(example.prompt_ids) + is_text(example, tokenizer))
                text[row, : len(example)].masked_fill_(~kept, IGNORED)
            self.batches.append((inputs, text))
        self.num_all = sum(int((inputs["labels"] != IGNORED).sum()) for inputs, _ in self.batches)
        self.num_text = sum(int((text != IGNORED).sum()) for _, text in self.batches)

    @torch.no_grad()
    def loss_of(self, model: CombinedModel) -> Loss:
        """The pair's, over the full vocabulary, from the knowledge that was read before."""
        model.eval()
        of_text = of_rest = 0.0
        for inputs, text in self.batches:
            rest = inputs["labels"].masked_fill(text != IGNORED, IGNORED)
            of_text += model(**inputs | {"labels": text}, num_items_in_batch=1).loss.item()
            of_rest += model(**inputs | {"labels": rest}, num_items_in_batch=1).loss.item()
        return Loss((of_text + of_rest) / self.num_all, of_text / self.num_text)

    @torch.no_grad()
    def loss_of_source(self, source: Source) -> Loss:
        """The source's own, from transformers' forward and loss: nothing of the pair takes part."""
        of_all = of_text = 0.0
        for inputs, text in tqdm(self.batches, desc="source, by transformers alone", unit=" batches"):
            asked = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
            outputs = source.model(**asked)
            of_all += outputs.loss.item() * int((inputs["labels"] != IGNORED).sum())
            of_text += F.cross_entropy(
                outputs.logits[:, :-1].flatten(0, 1), text[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
            ).item()
        return Loss(of_all / self.num_all, of_text / self.num_text)


def loss_table(rows: dict[str, Loss]) -> str:
    """A row for each model."""
    head = ["loss in nats a token, unseen problems", *NAMES.values()]
    return table(head, [[name, f"{loss.all:.4f}", f"{loss.text:.4f}"] for name, loss in rows.items()])


def loss_figure(source: Loss, unseen: dict[int, Loss], losses: Sequence[float]) -> Figure:
    """Losses of unseen problems over steps (dots), the source's levels (dashes), and the training loss (thin)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.6))
        axes.plot(*zip(*curve(losses), strict=True), color=COLOURS["all"], alpha=0.3, lw=1, label="training batches")
        for part, colour in COLOURS.items():
            values = [getattr(loss, part) for loss in unseen.values()]
            axes.plot(list(unseen), values, "o-", color=colour, ms=5, mec="white", label=NAMES[part])
            axes.axhline(getattr(source, part), color=colour, ls="--", lw=1)
        axes.plot([], [], color=GREY, ls="--", lw=1, label="the source by itself")
        axes.set(xlabel="training step", ylabel="loss (nats per token)", ylim=(0, None))
        axes.set_title("Unseen school problems: the pair starts as its source")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, hold step 0 against the source, train, and judge on unseen problems."""
    options = parser("identity_start", __doc__)
    options.add_argument("file", type=Path, help="JSONL with the fields question and answer, as GSM8K's train.jsonl")
    given = options.parse_args(arguments)
    size = SMALL if given.quick else Size()
    started = time.perf_counter()
    print(f"seed {SEED}, {size}")
    settings = load_settings(RECIPES / "own-data.yaml", [f"training.sampled_words={SAMPLED_WORDS}"])
    source = Source.load("default")
    vocab_size = source.config.vocab_size
    tokenizer = with_template(source.tokenizer, settings.data.template)
    to_train, to_judge = read_problems(given.file, tokenizer, size, vocab_size=vocab_size)

    pair = build_model(settings.model.model_copy(update={"source": source}), seed=SEED)
    assert (pair.config.visibility, pair.config.head, pair.config.start) == ("causal", "source", "identity")
    choices = {"source": source, "head": "new", "start": "published"}
    published = build_model(settings.model.model_copy(update=choices), seed=SEED)
    to_judge = with_knowledge(pair, to_judge, label="source reads unseen problems")  # `published` reads the same
    to_train = with_knowledge(pair, to_train, label="source reads training problems")
    unseen = Unseen(to_judge, tokenizer, vocab_size=vocab_size)

    own, from_noise = unseen.loss_of_source(source), unseen.loss_of(published)
    course = {0: unseen.loss_of(pair)}
    print(f"source {own}\nstep 0 {course[0]}\nstep 0, start published {from_noise}", flush=True)
    if abs(course[0].all - own.all) > TOLERANCE:
        raise RuntimeError(f"step 0 is not the source: {course[0].all} and {own.all}")

    def judge(step: int) -> None:
        if step % size.eval_steps == 0:
            course[step] = unseen.loss_of(pair)

    batches = example_batches(pair, to_train, settings.training, tokenizer)
    losses = train_(pair, batches, settings.training, steps=size.steps, label="training", each=judge)
    rows = {
        "source by itself (transformers' own forward)": own,
        "pair at step 0: start `identity`, head `source`": course[0],
        f"pair after {size.steps} steps": course[size.steps],
        "step 0 as published: start `published`, head `new`": from_noise,
    }
    publish(
        "identity-start",
        given,
        command=f"python -m benchmarks.identity_start {given.file.parent.name}/{given.file.name}",
        measured=loss_table(rows),
        figure=loss_figure(own, course, losses),
        results={
            "seed": SEED,
            "size": asdict(size),
            "ln_vocab_nats": math.log(vocab_size),
            "published_step_0_nats": PUBLISHED_STEP_0,
            "source": asdict(own),
            "published_start": asdict(from_noise),
            "course": {str(step): asdict(loss) for step, loss in course.items()},
            "training_curve": [(step, round(loss, 4)) for step, loss in curve(losses)],
        },
        started=started,
    )


if __name__ == "__main__":
    main()
