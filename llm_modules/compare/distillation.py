"""Logit distillation: a generator that learns from a teacher's next-token probabilities as well as from the answers."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llm_modules.baselines import GeneratorAlone
from llm_modules.knowledge import Knowledge
from llm_modules.loss import LossVocabulary, label_rows, rows_per_chunk
from llm_modules.readout import Readout
from llm_modules.source import Source

SHARE_OF_TEACHER = 0.5


class Distilled(GeneratorAlone):
    """A generator alone whose training loss is the mean of two.

        0.5 * cross_entropy(answer) + 0.5 * KL(teacher || generator)

    both at the labels, both over the same words, at temperature 1. Without knowledge it is a generator alone.

    Args:
        model: The generator, as for `GeneratorAlone`.
        teacher: Writes in the same vocabulary. Its final states are the knowledge that training hands in.
    """

    def __init__(self, model: PreTrainedModel, teacher: Source):
        super().__init__(model)
        self.teacher = teacher

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        loss_vocabulary: LossVocabulary | None = None,
        num_items_in_batch: Tensor | int | None = None,
        knowledge: Knowledge | None = None,
    ) -> CausalLMOutputWithPast:
        """As `GeneratorAlone.forward`; `knowledge` holds the teacher's final states `[batch, length, 1, D]`."""
        if labels is None or knowledge is None:
            return super().forward(input_ids, attention_mask, labels, prompt_mask, loss_vocabulary, num_items_in_batch)
        states = self._states(input_ids, attention_mask)
        predicts, targets = label_rows(labels)
        taught = knowledge.states[:, :, -1][predicts].to(states.dtype)
        loss = _mixed_loss(self, states[predicts], taught, targets, loss_vocabulary)
        return CausalLMOutputWithPast(loss=loss / (len(targets) if num_items_in_batch is None else num_items_in_batch))


def _mixed_loss(
    model: Distilled, rows: Tensor, taught: Tensor, targets: Tensor, vocabulary: LossVocabulary | None
) -> Tensor:
    """The loss of a `Distilled`, summed over rows, few rows' logits at a time."""
    words, log_weights = None, torch.zeros((), device=rows.device)
    if vocabulary is not None:
        vocabulary = vocabulary.to(rows.device)
        words, log_weights, targets = vocabulary.words, vocabulary.log_weights, vocabulary.positions(targets)
    matrix = model._read_out(rows, words).matrix

    def part(rows: Tensor, taught: Tensor, wanted: Tensor) -> Tensor:
        said = (Readout(rows, matrix).logits() + log_weights).log_softmax(-1)
        with torch.no_grad():
            right = (model.teacher.readout(taught, words).logits().to(said.dtype) + log_weights).log_softmax(-1)
        apart = F.kl_div(said, right, reduction="sum", log_target=True)
        return SHARE_OF_TEACHER * apart + (1 - SHARE_OF_TEACHER) * F.nll_loss(said, wanted, reduction="sum")

    size = rows_per_chunk(len(matrix))
    pieces = zip(rows.split(size), taught.split(size), targets.split(size), strict=True)
    return torch.stack([checkpoint(part, *piece, use_reentrant=False) for piece in pieces]).sum()
