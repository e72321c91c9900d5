"""What is compared: the rows of the table, in the order in which they are run where time is short."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_modules.errors import UserError
from llm_modules.settings import ModelSettings

PAIR = "pair"
TRAINED_BY_TEACHER = {"distilled-lora": "lora"}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        name: As the command line takes it.
        label: As readers meet it.
        meaning: What it is, for readers.
        is_trained: Whether it costs a budget.
    """

    name: str
    label: str
    meaning: str
    is_trained: bool = True


ROWS = (
    Row(PAIR, "pair", "the pair of the configuration: bridge and generator trained on the frozen source's states"),
    Row(
        "generator",
        "generator alone",
        "the pair's generator without a source: random weights, its own word table, in the source's vocabulary",
    ),
    Row(
        "source-few-shot",
        "source, few-shot",
        "the frozen source with a few solved training examples before each question",
        is_trained=False,
    ),
    Row(
        "bridge-linear",
        "pair, no cross-attention",
        "the same pair without bridge layers: the source's states enter the generator through linear layers only, so "
        "that the cross-attention itself is judged",
    ),
    Row("lora", "LoRA on the source", "rank 16 on all linear layers of the source (peft)"),
    Row("pair-causal", "pair, causal", "the same pair whose source also reads the answer so far"),
    Row("pair-prompt", "pair, prompt", "the same pair whose source reads the question only"),
    Row(
        "source-zero-shot",
        "source, zero-shot",
        "the frozen source, asked the bare question in its own chat form",
        is_trained=False,
    ),
    Row(
        "generator-matched",
        "generator, pair’s size",
        "the generator alone, made narrower or wider until it trains as many parameters as the pair",
    ),
    Row(
        "distilled",
        "distilled generator",
        "the generator alone, trained half on the answers and half on the source's next-token probabilities",
    ),
    Row("shadow", "ShadowPEFT on the source", "peft's ShadowConfig with its defaults"),
    Row("full", "source, fine-tuned in full", "all weights of the source trained"),
    Row("distilled-lora", "distilled from LoRA", "as the distilled generator, taught by the source with its LoRA"),
    Row(
        "pair-bidirectional",
        "pair, bidirectional (leaks)",
        "the published wiring, which sees the tokens it must predict: its loss is that of copying, and means nothing",
    ),
    Row(
        "generator-pretrained",
        "generator, pretrained",
        "the generator alone with its own pretrained weights and its own tokenizer",
    ),
    Row(
        "source-best-prompt",
        "source, best prompt",
        "the frozen source with whichever of several prompt forms did best on training problems kept apart",
        is_trained=False,
    ),
)
BY_NAME = {row.name: row for row in ROWS}


def chosen_rows(names: Sequence[str], settings: ModelSettings) -> list[Row]:
    """The rows asked for, or all that go with the settings; the pair is always the first.

    Raises:
        UserError: For a name that no row has, or a row that these settings cannot have.
    """
    twin = f"pair-{settings.visibility}"
    without = {twin: "the pair of the configuration has that visibility: it is the row pair"}
    if not isinstance(settings.generator, str):
        without["generator-pretrained"] = "model.generator names no pretrained weights"
    for name in names:
        if name not in BY_NAME:
            raise UserError(f"--rows {name!r} is no row; choose among: {', '.join(BY_NAME)}")
        if name in without:
            raise UserError(f"--rows {name!r} cannot be had: {without[name]}; leave it out")
    asked = {PAIR, *(names or BY_NAME)} - (set() if names else set(without))
    for row, teacher in TRAINED_BY_TEACHER.items():
        if row in asked and teacher not in asked:
            raise UserError(f"--rows {row} learns from the row {teacher}; ask for both")
    return [row for row in ROWS if row.name in asked]
