"""LoRA, ShadowPEFT and full fine-tuning of a source, behind the pair's calls.

Logits are computed only where there is a label, as the pair does; transformers' own forward would compute them at every
position.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llm_modules.errors import UserError
from llm_modules.folders import written_beside
from llm_modules.loss import LossVocabulary, cross_entropy, label_rows
from llm_modules.readout import Readout
from llm_modules.source import Source

Method = Literal["lora", "lora_attention", "shadow", "full"]
RANK = 16
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


class AdaptedSource(nn.Module):
    """A source that trains: through adapters beside its frozen weights, or in full.

    Args:
        method: `lora` (all linear layers), `lora_attention`, `shadow` (peft's defaults) or `full`.
        model: The source as transformers loads it; changed in place.

    Raises:
        UserError: If peft is not installed, or the source bends its logits (`final_logit_softcapping`).
    """

    def __init__(self, method: Method, model: PreTrainedModel):
        super().__init__()
        if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
            raise UserError(f"a {type(model).__name__} bends its logits, which {method} here cannot do; leave it out")
        self.method = method
        self._source = Source.of(model)  # frozen by this, until the method says what trains
        self.adapted = adapted(method, model)
        self._language_model = [model]  # in a list: no second name for the same parameters

    @property
    def config(self) -> PreTrainedConfig:
        """The source's."""
        return self._language_model[0].config

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._language_model[0].device

    @property
    def matrix(self) -> Tensor:
        """Its output matrix, `[V, D]`."""
        return self._language_model[0].get_output_embeddings().weight

    def check_room(self, prompt_len: int, response_len: int) -> None:
        """As for the pair."""
        self._source.check_length(prompt_len + response_len)

    def num_parameters(self, only_trainable: bool = True) -> int:
        """Those that train, or all, adapters included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def states(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """What the output matrix would read, `[batch, length, D]`."""
        model = self._language_model[0]
        head = model.get_output_embeddings()
        model.set_output_embeddings(nn.Identity())
        try:
            found: Tensor = self.adapted(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        finally:
            model.set_output_embeddings(head)
        return found

    def auxiliary(self) -> tuple[Tensor | None, float]:
        """ShadowPEFT's own states of what was just computed, `[batch, length, D]`, and the weight of their loss."""
        if self.method != "shadow":
            return None, 0.0
        shadow: Any = self.adapted
        return shadow.base_model._seed_shadow_state, shadow.peft_config["default"].auxiliary_loss_weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        loss_vocabulary: LossVocabulary | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """Loss at the labels; `[batch, length]` inputs as for the pair, of which `prompt_mask` means nothing here."""
        states = self.states(input_ids, attention_mask)
        if labels is None:
            return CausalLMOutputWithPast(logits=Readout(states, self.matrix).logits())
        predicts, targets = label_rows(labels)
        vocabulary = None if loss_vocabulary is None else loss_vocabulary.to(states.device)
        matrix = self.matrix if vocabulary is None else self.matrix[vocabulary.words]

        def mean(rows: Tensor) -> Tensor:
            return cross_entropy(Readout(rows, matrix), targets, vocabulary=vocabulary, num_items=num_items_in_batch)

        loss = mean(states[predicts])
        shadow, weight = self.auxiliary()
        if shadow is not None and self.training:
            loss = loss + weight * mean(shadow[predicts])
        return CausalLMOutputWithPast(loss=loss)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`."""
        return self.adapted.generate(*args, **kwargs)  # type: ignore[operator]

    def save_pretrained(self, folder: Path) -> None:
        """The adapter alone; of full fine-tuning nothing, which would be another source."""
        if self.method == "full":
            return
        with written_beside(folder) as beside:
            self.adapted.save_pretrained(beside)  # type: ignore[operator]


def adapted(method: Method, model: nn.Module) -> nn.Module:
    """The model with what the method trains, and only that, requiring gradients.

    Raises:
        UserError: If peft is needed and not installed.
    """
    if method == "full":
        return model.requires_grad_(True)
    try:
        from peft import LoraConfig, ShadowConfig, TaskType, get_peft_model
    except ImportError as error:
        raise UserError(f"{method} needs peft; pip install 'llm-modules[baselines]'") from error
    model.requires_grad_(False)
    if method == "shadow":
        return get_peft_model(model, ShadowConfig(task_type=TaskType.CAUSAL_LM))
    layers: str | list[str] = ATTENTION if method == "lora_attention" else "all-linear"
    return get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=RANK, target_modules=layers))
