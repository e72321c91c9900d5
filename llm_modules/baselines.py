"""What the pair is measured against, behind the same calls as the pair itself."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from llm_modules.errors import UserError
from llm_modules.folders import written_beside
from llm_modules.generator import position_limit
from llm_modules.loss import LossVocabulary, cross_entropy, label_rows
from llm_modules.readout import Readout


class GeneratorAlone(nn.Module):
    """A generator without a source: its own token table for the prompt, its own output matrix.

    Takes the arguments of `CombinedModel.forward`, of which `prompt_mask` and `knowledge` mean nothing to it.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its own, saved beside it.
    """

    accepts_loss_kwargs = True

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._tied = {f"model.{name}": f"model.{kept}" for name, kept in model.all_tied_weights_keys.items()}
        self.register_state_dict_post_hook(_without_tied)  # safetensors refuses one tensor under two names
        self.register_load_state_dict_pre_hook(_with_tied)

    @classmethod
    def from_config(
        cls, config: PreTrainedConfig, *, vocab_size: int, generation_config: GenerationConfig
    ) -> "GeneratorAlone":
        """The very shape of a pair's generator, with random weights, writing in the source's vocabulary.

        Args:
            config: Configuration of the generator.
            vocab_size: The source's, so that both write with the same tokenizer.
            generation_config: The source's special tokens.
        """
        fields = config.to_dict() | {
            "vocab_size": vocab_size,
            "bos_token_id": generation_config.bos_token_id,
            "eos_token_id": generation_config.eos_token_id,
            "pad_token_id": generation_config.pad_token_id,
            # one table for both ends: a second would double the parameters for words that are never seen
            "tie_word_embeddings": True,
        }
        model = AutoModelForCausalLM.from_config(type(config)(**fields), dtype=torch.float32)
        model.generation_config = generation_config
        return cls(model)

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration of the generator."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.model.device

    def check_room(self, prompt_len: int, response_len: int) -> None:
        """As for the pair: whether a prompt and its response fit."""
        limit = position_limit(self.model.base_model)
        if limit is not None and prompt_len + response_len > limit:
            raise UserError(
                f"{prompt_len + response_len} tokens are more than the generator's {limit} positions; lower "
                f"data.max_length to {limit}"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Save as a plain model of transformers, tokenizer included; the folder takes its name when complete."""
        with written_beside(Path(folder)) as beside:
            self.model.save_pretrained(beside)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(beside)

    def activation_checkpointing_enable(self, **kwargs) -> None:
        """As transformers': layers are computed again in the backward pass."""
        self.model.activation_checkpointing_enable(**kwargs)

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
        states = self._states(input_ids, attention_mask)
        if labels is None:
            return CausalLMOutputWithPast(logits=self._read_out(states).logits())
        predicts, targets = label_rows(labels)
        vocabulary = None if loss_vocabulary is None else loss_vocabulary.to(states.device)
        readout = self._read_out(states[predicts], None if vocabulary is None else vocabulary.words)
        loss = cross_entropy(readout, targets, vocabulary=vocabulary, num_items=num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss)

    def generate(self, *args, **kwargs) -> Tensor:
        """As transformers' `generate`."""
        return self.model.generate(*args, **kwargs)

    def _states(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """What the output matrix reads, `[batch, length, d]`."""
        return self.model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state

    def _read_out(self, states: Tensor, words: Tensor | None = None) -> Readout:
        matrix = self.model.get_output_embeddings().weight
        return Readout(states, matrix if words is None else matrix[words])


def _without_tied(module: GeneratorAlone, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in module._tied:
        del state[prefix + name]


def _with_tied(module: GeneratorAlone, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, kept in module._tied.items():
        state.setdefault(prefix + name, state[prefix + kept])
