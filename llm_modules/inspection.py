"""`llm-modules inspect`: which tokens of a prompt each token of an answer is written from, and how far gates open."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer

from llm_modules.data.dataset import check_ids, padding_id
from llm_modules.data.templates import Example, encode, encode_prompt
from llm_modules.errors import UserError
from llm_modules.files import write_text
from llm_modules.loading import load_trained
from llm_modules.modeling import CombinedModel
from llm_modules.pages import templates
from llm_modules.plots import heat_figure, save_figure
from llm_modules.watching import Watched, watch

MOST_COLUMNS = 96  # tokens read that a picture shows; of more, those that are read most
WRAP = 32  # tokens of an answer in a line of the gates' picture
SIGNS = {"\n": "↵", "\r": "↵", "\t": "⇥", " ": "␣"}


@dataclass(frozen=True)
class Inspection:
    """An answer, token by token, with what was read for each.

    Args:
        question: What was asked.
        read: The tokens that could be read, spelled.
        written: The tokens of the answer, spelled.
        watched: Gates and attention.
    """

    question: str
    read: Sequence[str]
    written: Sequence[str]
    watched: Watched

    @property
    def shown(self) -> list[int]:
        """Columns of the tokens to show: all, or where there are too many those that are read most, in their order."""
        most = self.watched.attention.amax((0, 1)).topk(min(MOST_COLUMNS, len(self.read))).indices
        return sorted(most.tolist())

    def attention(self, layer: int) -> Tensor:
        """Of the tokens shown, `[num_written, num_shown]`."""
        return self.watched.attention[layer][:, self.shown]


def inspect_answer(
    model: CombinedModel, example: Example, tokenizer: PreTrainedTokenizerBase, *, question: str
) -> Inspection:
    """Watch the pair write a response that is given."""
    watched = watch(model, example)
    read = example.input_ids[: watched.attention.shape[-1]]
    return Inspection(question, spell(read, tokenizer), spell(example.response_ids, tokenizer), watched)


def inspect_folder(
    folder: Path, *, prompt: str, system: str | None, answer: str | None, max_new_tokens: int, output: Path
) -> list[Path]:
    """Answer a prompt, streamed, and write pictures and a page of what was read meanwhile.

    Args:
        folder: Of a trained pair.
        prompt: What to ask.
        system: System message before it.
        answer: Watch the pair write this instead of what it would write.
        max_new_tokens: Most tokens of an answer that it writes.
        output: Folder for `inspect.html` and the pictures.

    Returns:
        The files, the page first.

    Raises:
        UserError: If the model is no pair, or has no room for prompt and answer.
    """
    model, tokenizer = load_pair(folder)
    make_folder(output)
    turns = [{"role": "user", "content": prompt}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    prompt_ids = encode_prompt(turns, tokenizer)
    check_ids(prompt_ids, tokenizer, vocab_size=model.config.vocab_size)
    if answer is None:
        model.check_room(len(prompt_ids), max_new_tokens)
        example = Example(prompt_ids, _write(model, prompt_ids, tokenizer, max_new_tokens=max_new_tokens))
    else:
        example = encode([*turns, {"role": "assistant", "content": answer}], tokenizer)
        check_example(model, example, tokenizer)
    found = inspect_answer(model, example, tokenizer, question=prompt)
    return [write_page(found, output / "inspect.html", model=str(folder)), *write_pictures(found, output)]


def check_example(model: CombinedModel, example: Example, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse an example that the pair cannot be given.

    Raises:
        UserError: For an id that the source does not have, or more tokens than source or generator hold.
    """
    check_ids(example.input_ids, tokenizer, vocab_size=model.config.vocab_size)
    model.check_room(len(example.prompt_ids), len(example.response_ids))


def load_pair(folder: Path) -> tuple[CombinedModel, PreTrainedTokenizerBase]:
    """A trained pair whose bridge can be looked into, and its tokenizer.

    Raises:
        UserError: If it is a language model of another kind, or its bridge has no layer.
    """
    model, tokenizer = load_trained(folder)
    if not isinstance(model, CombinedModel):
        raise UserError(
            f"{folder} holds a language model without a source ({type(model).__name__}), so there is no bridge to look "
            "into; give a trained pair"
        )
    check_layers(model, folder)
    return model, tokenizer


def check_layers(model: CombinedModel, name: Path | str) -> None:
    """Refuse a pair whose bridge has nothing to look into.

    Raises:
        UserError: If it has no layer.
    """
    if not model.config.num_cross_attention_layers:
        raise UserError(f"the bridge of {name} has no cross-attention layer, so there are no gates to look at")


def make_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        UserError: If there cannot be such a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be a folder ({error.strerror}); choose another --out") from error


def write_pictures(found: Inspection, folder: Path) -> list[Path]:
    """`gates.png`, and for each bridge layer `attention-LAYER.png`."""
    layers = [f"layer {layer + 1}" for layer in range(len(found.watched.gates))]
    drawn = {
        "gates.png": heat_figure(
            found.watched.gates.tolist(),
            rows=layers,
            columns=found.written,
            title="How far each gate is open while a token is written",
            meaning="gate open",
            top=1.0,
            wrap=WRAP,
        )
    }
    columns = [found.read[column] for column in found.shown]
    left_out = len(found.read) - len(columns)
    for layer, name in enumerate(layers):
        drawn[f"attention-{layer + 1}.png"] = heat_figure(
            found.attention(layer).tolist(),
            rows=found.written,
            columns=columns,
            title=f"What {name} reads (columns) while a token is written (rows)"
            + f"; {left_out} tokens that are read less left out" * bool(left_out),
            meaning="attention, mean over heads",
        )
    for file, figure in drawn.items():
        save_figure(figure, folder / file)
    return [folder / file for file in drawn]


def write_page(found: Inspection, path: Path, *, model: str) -> Path:
    """The same as a web page that needs nothing beside it."""
    layers = [
        {
            "name": f"layer {layer + 1}",
            "gates": found.watched.gates[layer].tolist(),
            "attention": found.attention(layer).tolist(),
            "top": max(1e-9, found.attention(layer).max().item()),
        }
        for layer in range(len(found.watched.gates))
    ]
    contents = {
        "model": model,
        "question": found.question,
        "written": found.written,
        "read": [found.read[column] for column in found.shown],
        "num_left_out": len(found.read) - len(found.shown),
        "layers": layers,
    }
    write_text(path, templates().get_template("inspect.html.jinja").render(contents))
    return path


def spell(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token as text that can be seen: blanks and line breaks have signs, what is no text has its name."""
    found = []
    for token, name in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        text = "".join(SIGNS.get(sign, sign) for sign in tokenizer.decode([token]))
        found.append(
            text if text and text.isprintable() else name or f"<{token}>"
        )  # a table may be longer than its words
    return found


@torch.no_grad()
def _write(
    model: CombinedModel, prompt_ids: list[int], tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int
) -> list[int]:
    """The answer that the pair thinks likeliest, printed as it comes."""
    ids = torch.tensor([prompt_ids], device=model.device)
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=padding_id(tokenizer, vocab_size=model.config.vocab_size),
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    found: list[int] = written[0, len(prompt_ids) :].tolist()
    return found
