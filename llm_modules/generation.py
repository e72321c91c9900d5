"""How transformers' `generate` decodes a combined model: its cache, and which tokens are the prompt."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GenerationMixin

from llm_modules.configuration import CombinedConfig
from llm_modules.errors import UserError
from llm_modules.knowledge import CombinedCache
from llm_modules.source import Source


class CombinedGenerationMixin(GenerationMixin):
    """What `generate` needs to know about a combined model."""

    config: CombinedConfig
    _position_limit: int | None
    _num_entering: Callable[[int, int], int]
    source: Source
    fold_head_: Callable[[int], None]

    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """Continue prompts, as in transformers: what is passed in is the prompt, what is written the response.

        `knowledge=` takes what [`read`] returned for the prompts (`prompt` visibility).
        """
        prompts = kwargs.get("input_ids") if inputs is None else inputs
        begun = kwargs.get("past_key_values")
        if isinstance(begun, CombinedCache) and prompts is not None and prompts.shape[1] == begun.get_seq_length() + 1:
            # all but the last token is known, so this goes on with an answer; anything more would be a second prompt
            kwargs["prompt_mask"] = begun.prompt_mask
        if prompts is not None and kwargs.get("prompt_mask") is None:
            kwargs["prompt_mask"] = torch.ones_like(prompts, dtype=torch.bool)  # decoding without a cache needs it
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs) -> dict:
        """Inputs of one decoding step, without the tokenizer that `generate` hands along for stop strings."""
        kwargs.pop("tokenizer", None)
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ) -> None:
        """Give `generate` our cache, and the head the layout for its rows."""
        self.fold_head_(batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1))
        prompts = model_kwargs["prompt_mask"].shape[1]
        self.source.check_length(prompts if self.config.visibility == "prompt" else max_cache_length)
        limit, needed = self._position_limit, self._num_entering(prompts, max_cache_length - prompts)
        if limit is not None and needed > limit:
            raise UserError(
                f"prompt and max_new_tokens need {needed} positions, the generator has {limit}; shorten the prompt or "
                "lower max_new_tokens"
            )
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise UserError(
                f"cache_implementation={generation_config.cache_implementation!r} is not supported; leave it out"
            )
        if self.config.visibility == "bidirectional":
            generation_config.use_cache = model_kwargs["use_cache"] = False  # each new token changes every state
        elif generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = CombinedCache(self.config)

    def _supports_logits_to_keep(self) -> bool:
        return True
