"""A world in which a whole run takes seconds: a random source on the disk, its tokenizer, data, and a recipe."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

WORDS = [*"?+=", *map(str, range(10)), *"abcdefghijklmnopqrstuvwxyz", "user", "assistant", ":"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
GENERATOR = {
    "model_type": "llama", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "attention_dropout": 0.1,
}  # fmt: skip


def make_world(folder: Path) -> Path:
    """Make it in a folder; the recipe, which names neither length nor output folder."""
    torch.manual_seed(5)
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "source")
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **names)
    tokenizer.save_pretrained(folder / "source")
    sums = [(first, second) for first in range(8) for second in range(8)]
    for name, part in (("train", sums[::2]), ("test", sums[1:16:2])):
        keys = ("prompt", "completion") if name == "train" else ("question", "answer")
        lines = (dict(zip(keys, (f"{a} + {b} ?", str((a + b) % 10)), strict=True)) for a, b in part)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return write_recipe(folder / "recipe.yaml", folder)


def write_recipe(file: Path, world: Path, **changes: Any) -> Path:
    """A recipe in this world; changes as `section={...}`."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "source": str(world / "source"), "generator": GENERATOR, "num_heads": 2, "d_adapter": 10,
            "num_bridge_layers": 1,
        },
        "data": {"train_file": str(world / "train.jsonl"), "validation_fraction": 0.2, "max_length": 40},
        "training": {"max_steps": 24, "batch_size": 4, "save_steps": 3, "eval_steps": 6},
    }  # fmt: skip
    whole = {name: fields | changes.get(name, {}) for name, fields in sections.items()}
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return file
