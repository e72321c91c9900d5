"""What a pair is measured against: LoRA, ShadowPEFT and full fine-tuning of the same source, made as fast as we can.

All of them compute logits only where there is a label, as the pair does. transformers' own forward would compute them
at every position.
"""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, ShadowConfig, TaskType, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.given_batches import Actions, collated, read_batches, update_
from llm_modules import Source
from llm_modules.data.templates import Example
from llm_modules.loss import label_rows

RANK = 16
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LEARNING_RATE = 1e-4
LEAN_ROWS = 128  # labels whose logits are held at once where memory counts
SEED = 0


def rival(method: str, folder: str) -> Actions:
    """A rival on the default source.

    Args:
        method: `lora` (all linear layers), `lora_attention`, `shadow` or `full`.
        folder: Where the batches are.
    """
    batches = read_batches(Path(folder))
    return actions_of(method, Source.load("default").model, batches)


def actions_of(method: str, model: nn.Module, batches: list[list[Example]]) -> Actions:
    """`step(index)` trains on a batch and `lean_step(index)` does with a loss that holds few logits.

    Args:
        method: As for `rival`.
        model: The source as transformers loads it.
        batches: To train on.
    """
    torch.manual_seed(SEED)
    wrapped = adapted(method, model).train()
    matrix = model.get_output_embeddings().weight
    model.lm_head = nn.Identity()  # the forward then ends with the states that the output matrix would read
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

    def train(index: int, *, lean: bool) -> float:
        batch = collated(batches[index])
        mask = batch["attention_mask"]
        predicts, targets = label_rows(batch["labels"])
        states = wrapped(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).logits
        mean = lean_loss if lean else plain_loss
        loss = mean(states[predicts], targets, matrix)
        if method == "shadow":  # its own auxiliary loss, at the labels too
            shadow, weight = wrapped.base_model, wrapped.peft_config["default"].auxiliary_loss_weight
            loss = loss + weight * mean(shadow._seed_shadow_state[predicts], targets, matrix)
        return update_(loss, parameters, optimizer)

    return {
        "step": lambda index: train(index, lean=False),
        "lean_step": lambda index: train(index, lean=True),
        "num_trained": lambda: sum(parameter.numel() for parameter in parameters),
    }


def adapted(method: str, model: nn.Module) -> nn.Module:
    """The model with what the method trains, and only that, requiring gradients."""
    if method == "full":
        return model.requires_grad_(True)
    model.requires_grad_(False)
    if method == "shadow":
        wrapped: PeftModel = get_peft_model(model, ShadowConfig(task_type=TaskType.CAUSAL_LM))
        return wrapped
    layers = {"lora": "all-linear", "lora_attention": ATTENTION}[method]
    return get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=RANK, target_modules=layers))


def plain_loss(states: Tensor, targets: Tensor, matrix: Tensor) -> Tensor:
    """All logits at once: nothing is computed twice, so this is the fastest."""
    return F.cross_entropy(F.linear(states, matrix), targets)


def lean_loss(states: Tensor, targets: Tensor, matrix: Tensor) -> Tensor:
    """Few logits at a time, computed again in the backward pass: least memory."""

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(rows, matrix), wanted, reduction="sum")

    pieces = zip(states.split(LEAN_ROWS), targets.split(LEAN_ROWS), strict=True)
    return torch.stack([checkpoint(part, *piece, use_reentrant=False) for piece in pieces]).sum() / len(targets)
