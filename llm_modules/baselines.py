"""What the pair is measured against, behind the same calls as the pair itself."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from llm_modules.errors import UserError
from llm_modules.loss import LossVocabulary, cross_entropy, label_rows


class GeneratorAlone(nn.Module):
    """The generator without a source: its own token table for the prompt, its own output matrix, the same shape.

    Takes the arguments of `CombinedModel.forward`, of which `prompt_mask` and `knowledge` mean nothing to it.

    Args:
        config: Configuration of the generator.
        vocab_size: The source's, so that both write with the same tokenizer.
        generation_config: The source's special tokens.
    """

    accepts_loss_kwargs = True

    def __init__(self, config: PreTrainedConfig, *, vocab_size: int, generation_config: GenerationConfig):
        super().__init__()
        fields = config.to_dict() | {
            "vocab_size": vocab_size,
            "bos_token_id": generation_config.bos_token_id,
            "eos_token_id": generation_config.eos_token_id,
            "pad_token_id": generation_config.pad_token_id,
            # one table for both ends: a second would double the parameters for words that are never seen
            "tie_word_embeddings": True,
        }
        self.model = AutoModelForCausalLM.from_config(type(config)(**fields), dtype=torch.float32)
        self.model.generation_config = generation_config
        self._tied = {f"model.{name}": f"model.{kept}" for name, kept in self.model.all_tied_weights_keys.items()}
        self.register_state_dict_post_hook(_without_tied)  # safetensors refuses one tensor under two names
        self.register_load_state_dict_pre_hook(_with_tied)

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration of the generator, with the source's vocabulary."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.model.device

    def num_parameters(self, **kwargs) -> int:
        """Trained parameters, the tied table once; arguments as in transformers."""
        return self.model.num_parameters(**kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        loss_vocabulary: LossVocabulary | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """Loss at the labels; `[batch, length]` inputs as for the pair."""
        states = self.model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        if labels is None:
            return CausalLMOutputWithPast(logits=self._project(states))
        predicts, targets = label_rows(labels)
        if not len(targets):
            raise UserError("no position has a label after masking; check labels and max_length")
        loss = cross_entropy(
            states[predicts],
            targets,
            self._project,
            vocab_size=self.config.vocab_size,
            vocabulary=loss_vocabulary,
            num_items=num_items_in_batch,
        )
        return CausalLMOutputWithPast(loss=loss)

    def generate(self, *args, **kwargs) -> Tensor:
        """As transformers' `generate`."""
        return self.model.generate(*args, **kwargs)

    def _project(self, rows: Tensor, final: Tensor | None = None, words: Tensor | None = None) -> Tensor:
        matrix = self.model.get_output_embeddings().weight
        return F.linear(rows, matrix if words is None else matrix[words])


def _without_tied(module: GeneratorAlone, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in module._tied:
        del state[prefix + name]


def _with_tied(module: GeneratorAlone, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, kept in module._tied.items():
        state.setdefault(prefix + name, state[prefix + kept])
