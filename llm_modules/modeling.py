"""The combined model: source -> bridge -> generator -> head."""

import copy
import inspect
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from llm_modules.attention import VisibleKnowledge
from llm_modules.bridge import Bridge
from llm_modules.card import model_card
from llm_modules.configuration import CombinedConfig
from llm_modules.errors import UserError
from llm_modules.files import write_text, written_beside
from llm_modules.fingerprint import fingerprint_combined
from llm_modules.generator import GeneratorLike, build_generator, load_generator, position_limit
from llm_modules.knowledge import CombinedCache, Knowledge
from llm_modules.loss import IGNORED, LossVocabulary, cross_entropy, label_rows
from llm_modules.source import Source, SourceLike, positions

logger = logging.getLogger(__name__)

LEAK_WARNING = (
    "visibility='bidirectional' lets every position read the source's states of the tokens it must predict: training "
    "losses mean nothing and generation meets a situation never trained in. It is here to reproduce the paper only."
)


class CombinedModel(PreTrainedModel, GenerationMixin):
    """A frozen source, a bridge, and a small generator that writes in the source's vocabulary (arXiv 2502.08213).

        h = source(ids);  z = bridge(h);  g = generator(z);  logits = head(g)

    The source is no sub-module: it is neither trained, saved nor copied, and many models can share it. Make a model
    with [`CombinedModel.from_modules`], load one with [`CombinedModel.from_pretrained`].

    Args:
        config: Configuration of the pair.
        generator: Body of the generator; built from `config.generator` with random weights if left out.
    """

    config: CombinedConfig
    config_class = CombinedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # the loss divides by num_items_in_batch, so gradient accumulation is exact
    _supports_sdpa = True

    def __init__(self, config: CombinedConfig, generator: PreTrainedModel | None = None):
        super().__init__(config)
        if config.visibility == "bidirectional":
            warnings.warn(LEAK_WARNING, stacklevel=2)
        self._attached_source: Source | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None  # saved beside the weights; the source's if left out
        self.bridge = Bridge(config)
        self.generator = build_generator(config.generator) if generator is None else generator
        width_out = config.d_source if config.head == "source" else config.vocab_size
        self.head = nn.Linear(config.d_generator, width_out, bias=config.head == "source")
        if config.start == "identity":
            nn.init.zeros_(self.head.weight)  # step 0 adds nothing to the source's own final state
            nn.init.zeros_(self.head.bias)
            self.bridge.close_gates_()
        self._position_limit = position_limit(self.generator)
        self._generator_takes_positions = "position_ids" in inspect.signature(self.generator.forward).parameters
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module initialises itself when built, and loading refuses missing weights."""

    @property
    def source(self) -> Source:
        """The frozen source; may be set to another view of it (see `controls`)."""
        if self._attached_source is None:
            raise UserError("this model has no source yet; load it with from_pretrained or call attach_source_")
        return self._attached_source

    @source.setter
    def source(self, source: Source) -> None:
        self._attached_source = source

    # -- making, saving and loading -----------------------------------------------------------------------------------

    @classmethod
    def from_modules(
        cls,
        source: SourceLike,
        generator: GeneratorLike,
        *,
        source_revision: str | None = None,
        source_dtype: torch.dtype = torch.float32,
        **choices: Any,
    ) -> "CombinedModel":
        """Join a source and a generator by a new bridge.

        Args:
            source: Id, folder, `.gguf` file, loaded model, [`Source`], or a configuration (random weights).
            generator: Id, folder or loaded model (pretrained weights), or a configuration (random weights).
            source_revision: Revision of a hub id.
            source_dtype: Dtype the source is loaded in; what trains is always fp32. Default fp32, the fastest on CPU.
            **choices: `visibility`, `head`, `start`, `taps`, `num_bridge_layers`, `num_heads`, `d_adapter`, `dropout`;
                defaults and their reasons stand in [`CombinedConfig`].

        Raises:
            UserError: For choices that contradict each other or modules that do not fit.
        """
        loaded = Source.of(source, revision=source_revision, dtype=source_dtype)
        generator_config, body = load_generator(generator)
        # copies: PreTrainedModel sets the attention implementation of its sub-configurations, and a source whose
        # own configuration lost it silently attends to its future
        config = CombinedConfig(
            source=copy.deepcopy(loaded.config), generator=copy.deepcopy(generator_config), **choices
        )
        return cls(config, body).attach_source_(loaded)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        source: SourceLike | None = None,
        source_dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> "CombinedModel":
        """Load bridge and generator from a folder, and the source from where the folder says it came from.

        Args:
            pretrained_model_name_or_path: Folder that `save_pretrained` wrote, or hub id of one.
            source: Use this source instead, for example one that other models already hold; it must be the one the
                model was trained with.
            source_dtype: Dtype of a source that is loaded here.

        Raises:
            UserError: If the folder is incomplete or changed, or the source is another one.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = _fetch(str(pretrained_model_name_or_path), kwargs.get("revision"))
        config = kwargs.pop("config", None) or _read_config(folder)
        verify_weights(folder, config)
        kwargs.setdefault("dtype", torch.float32)  # what trains must not follow the file's dtype
        kwargs.pop("revision", None)
        kwargs["output_loading_info"] = True
        try:
            model, info = super().from_pretrained(folder, *args, config=config, **kwargs)
        except RuntimeError as error:  # shapes that config.json does not have
            raise UserError(f"{folder} does not hold this model's weights ({error}); save the model again") from error
        wrong = {kind: sorted(map(str, info[kind])) for kind in info if info[kind]}
        if wrong:
            raise UserError(f"{folder} does not hold this model's weights: {wrong}; save the model again")
        if source is None and config.source_id is None:
            raise UserError(f"the source of {folder} was never stored; pass it as from_pretrained(..., source=...)")
        if (folder / "tokenizer_config.json").is_file():
            model.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if source is None:
            try:
                source = Source.of(config.source_id, revision=config.source_revision, dtype=source_dtype)
            except UserError as error:
                raise UserError(
                    f"the source of {folder} cannot be loaded: {error}. If it lies elsewhere, pass it as "
                    "from_pretrained(..., source=...)"
                ) from error
        return model.attach_source_(Source.of(source, dtype=source_dtype))

    def attach_source_(self, source: Source) -> "CombinedModel":
        """Give the model its source, checking that it is the one the model was made with.

        Raises:
            UserError: If the source's weights are not those the model was trained with.
        """
        expected, found = self.config.source_fingerprint, source.fingerprint
        if expected is None:
            self.config.source_fingerprint = found
            self.config.source_id, self.config.source_revision = source.source_id, source.revision
            self.config.bos_token_id = source.config.get_text_config().bos_token_id
            self.config.eos_token_id = source.config.get_text_config().eos_token_id
        elif expected != found:
            raise UserError(
                f"this model was trained with the source {self.config.source_id or 'given in memory'} "
                f"(fingerprint {expected}), not with {source.source_id or 'the one given'} (fingerprint {found}); "
                "load it with the source it was trained with"
            )
        self.source = source
        if source.model is not None and source.model.generation_config is not None:
            own = source.model.generation_config
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(self.generation_config, name, getattr(own, name))
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save bridge, generator, configuration, tokenizer and a model card; never the source's weights.

        The folder takes its name only when it is complete.
        """
        with written_beside(Path(save_directory)) as beside:
            super().save_pretrained(beside, **kwargs)
            self.config.weights_fingerprint = fingerprint_combined(beside)
            self.config.save_pretrained(beside)
            tokenizer = self.tokenizer
            if tokenizer is None and self._attached_source is not None:
                tokenizer = self._attached_source.tokenizer
            if tokenizer is not None:
                tokenizer.save_pretrained(beside)
            write_text(beside / "README.md", model_card(self.config, self.num_parameters()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CombinedModel":
        """Follow moves of the model with the source's device (never its dtype)."""
        super()._apply(fn, recurse)
        if self._attached_source is not None and self._attached_source.device != self.device:
            self._attached_source.to(self.device)
        return self

    # -- forward ------------------------------------------------------------------------------------------------------

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None) -> Knowledge:
        """Let the source read, once; pass the result as `forward(..., knowledge=...)` as often as wanted.

        Args:
            input_ids: `[batch, length]`.
            attention_mask: `[batch, past + length]`, 0 on padding.
            cache: A `DynamicCache` of what the source read before; extended in place.

        Returns:
            Knowledge with states `[batch, length, taps, D]`.
        """
        if attention_mask is None:
            past = 0 if cache is None else cache.get_seq_length()
            attention_mask = input_ids.new_ones(input_ids.shape[0], past + input_ids.shape[1])
        states = self.source.read(input_ids, attention_mask=attention_mask, taps=self.config.taps, cache=cache)
        return Knowledge(states.to(self.dtype), attention_mask[:, -input_ids.shape[1] :].bool())

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        knowledge: Knowledge | None = None,
        past_key_values: CombinedCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        loss_vocabulary: LossVocabulary | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position.

        Args:
            input_ids: `[batch, length]` token ids of the source's vocabulary.
            attention_mask: `[batch, past + length]`, 0 on padding.
            labels: `[batch, length]`, -100 where there is no loss. With labels the output has a loss and no logits:
                logits are computed only where there is a label, a chunk at a time.
            prompt_mask: `[batch, length]` bool, True on the prompt, one prefix per row. Without it the tokens before
                the first label are the prompt; without labels, every token is.
            knowledge: What [`read`] returned for these inputs (their prompts, with `prompt` visibility); the source's
                body then does not run.
            past_key_values: Cache of what came before.
            use_cache: Return a cache. Without a valid one (`bidirectional`) it is ignored.
            logits_to_keep: Compute logits for the last so many positions only; 0 for all.
            loss_vocabulary: Words that stand for the vocabulary in the loss; `None` for all of it.
            num_items_in_batch: Divide the summed loss by this (gradient accumulation).

        Returns:
            `loss` (nats per label) or `logits` `[batch, length or logits_to_keep, V]`, and `past_key_values`.

        Raises:
            UserError: For inputs the pair cannot hold, see the message.
        """
        batch, length = input_ids.shape
        visibility = self.config.visibility
        if visibility == "bidirectional" or labels is not None:
            past_key_values, use_cache = None, False
        elif use_cache and past_key_values is None:
            past_key_values = CombinedCache(self.config)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = input_ids.new_ones(batch, past + length)
        self._check_length(attention_mask.shape[1])
        if knowledge is not None and knowledge.states.shape[0] != batch:
            knowledge = knowledge.repeat_interleave(batch // knowledge.states.shape[0])

        is_prompt = embeddings = None
        if visibility == "prompt":
            is_prompt = resolve_prompt_mask(prompt_mask, labels, attention_mask, past=past, length=length)
            embeddings = self.source.embed(input_ids).to(self.dtype)
            knowledge, visible = self._prompt_knowledge(input_ids, is_prompt, knowledge, past_key_values)
        else:
            knowledge = self._running_knowledge(input_ids, attention_mask, knowledge, past_key_values)
            visible = VisibleKnowledge(
                attention_mask.bool(), first_query=past, bidirectional=visibility == "bidirectional"
            )
        z = self.bridge(
            None if knowledge is None else knowledge.states,
            visible=visible,
            embeddings=embeddings,
            is_prompt=is_prompt,
            remember=None if past_key_values is None else past_key_values.remember,
        )
        states = self._generate_states(z, attention_mask, past_key_values)
        final = self._final_states(knowledge, is_prompt, length) if self.config.start == "identity" else None

        if labels is not None:
            predicts, targets = label_rows(labels)
            if not len(targets):
                raise UserError("no position has a label after masking; check labels and max_length")
            rows = self._head_states(states[predicts], None if final is None else final[predicts])
            loss = cross_entropy(
                rows,
                targets,
                self._project,
                vocab_size=self.config.vocab_size,
                vocabulary=loss_vocabulary,
                num_items=num_items_in_batch,
            )
            return CausalLMOutputWithPast(loss=loss)
        kept = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        rows = self._head_states(states[:, kept], None if final is None else final[:, kept])
        return CausalLMOutputWithPast(logits=self._project(rows), past_key_values=past_key_values)

    def _prompt_knowledge(
        self, input_ids: Tensor, is_prompt: Tensor, knowledge: Knowledge | None, cache: CombinedCache | None
    ) -> tuple[Knowledge | None, VisibleKnowledge]:
        """`prompt` visibility: the source reads the prompt, once per request."""
        if cache is not None and cache.prompt_mask is not None:
            return None, VisibleKnowledge(cache.prompt_mask, first_query=cache.get_seq_length())
        prompt_len = int(is_prompt.any(0).nonzero().max()) + 1
        if knowledge is None:
            knowledge = self.read(input_ids[:, :prompt_len], is_prompt[:, :prompt_len].long())
        if knowledge.states.shape[1] < prompt_len:
            raise UserError(
                f"knowledge holds {knowledge.states.shape[1]} columns but the longest prompt has {prompt_len}; "
                "pass what read() returned for these prompts"
            )
        mask = is_prompt[:, :prompt_len] & knowledge.mask[:, :prompt_len]
        if cache is not None:
            cache.prompt_mask = mask
        return Knowledge(knowledge.states[:, :prompt_len].to(self.dtype), mask), VisibleKnowledge(mask)

    def _running_knowledge(
        self, input_ids: Tensor, attention_mask: Tensor, knowledge: Knowledge | None, cache: CombinedCache | None
    ) -> Knowledge:
        """`causal` and `bidirectional` visibility: the source reads every token."""
        source_cache = None if cache is None else cache.source_cache
        if knowledge is None or (cache is not None and cache.get_seq_length()):
            if (
                source_cache is not None
                and source_cache.get_seq_length() + input_ids.shape[1] != attention_mask.shape[1]
            ):
                raise UserError(
                    "the source has not read the tokens before these, because their knowledge was passed in; with "
                    f"visibility={self.config.visibility!r} let generate() read the prompt itself"
                )
            return self.read(input_ids, attention_mask, cache=source_cache)
        if knowledge.states.shape[1] != input_ids.shape[1]:
            raise UserError(
                f"knowledge holds {knowledge.states.shape[1]} columns for {input_ids.shape[1]} tokens; with "
                f"visibility={self.config.visibility!r} every token needs its own"
            )
        return Knowledge(knowledge.states.to(self.dtype), knowledge.mask)

    def _generate_states(self, z: Tensor, attention_mask: Tensor, cache: CombinedCache | None) -> Tensor:
        """The generator's last states `[batch, length, d]`."""
        kwargs = {"inputs_embeds": z, "attention_mask": attention_mask, "use_cache": cache is not None}
        if self._generator_takes_positions:
            kwargs["position_ids"] = positions(attention_mask)[:, -z.shape[1] :]
        past = None if cache is None else cache.self_attention_cache
        return self.generator(**kwargs, past_key_values=past).last_hidden_state

    def _final_states(self, knowledge: Knowledge | None, is_prompt: Tensor | None, length: int) -> Tensor:
        """The source's final states `[batch, length, D]`, zero where it read nothing."""
        if knowledge is None:
            assert is_prompt is not None  # noqa: S101 - only `prompt` visibility decodes without knowledge
            return is_prompt.new_zeros(*is_prompt.shape, self.config.d_source, dtype=self.dtype)
        final = knowledge.states[:, :, -1]  # taps ascend, so the final state is the last
        if is_prompt is None:
            return final
        return F.pad(final, (0, 0, 0, length - final.shape[1])) * is_prompt[..., None]

    def _head_states(self, states: Tensor, final: Tensor | None) -> Tensor:
        """What the output matrix reads: `[..., D]` for the source's, `[..., d]` for a new one."""
        if self.config.head == "new":
            return states
        return self.head(states) if final is None else final + self.head(states)

    def _project(self, rows: Tensor, words: Tensor | None = None) -> Tensor:
        if self.config.head == "source":
            return self.source.logits(rows, words)
        return F.linear(rows, self.head.weight if words is None else self.head.weight[words])

    def _check_length(self, length: int) -> None:
        limit = self._position_limit
        # padding counts: GPT-Neo, for one, keeps a square mask of its positions
        if limit is not None and length > limit:
            raise UserError(
                f"{length} tokens are more than the generator's {limit} positions; shorten the input, or use a "
                "generator with a longer or no position table (a rotary one, for example)"
            )

    # -- generation ---------------------------------------------------------------------------------------------------

    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """Continue prompts, as in transformers: what is passed in is the prompt, what is written the response.

        `knowledge=` takes what [`read`] returned for the prompts (`prompt` visibility).
        """
        prompts = kwargs.get("input_ids") if inputs is None else inputs
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
        """Give `generate` our cache."""
        limit = self._position_limit
        if limit is not None and max_cache_length > limit:
            raise UserError(
                f"prompt and max_new_tokens need {max_cache_length} positions, the generator has {limit}; shorten the "
                "prompt or lower max_new_tokens"
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


def resolve_prompt_mask(
    prompt_mask: Tensor | None, labels: Tensor | None, attention_mask: Tensor, *, past: int, length: int
) -> Tensor:
    """Which of the `length` current tokens are prompt: `[batch, length]` bool.

    Raises:
        UserError: If a row has no prompt, or the prompt is not one prefix.
    """
    real = attention_mask[:, -length:].bool()
    if past:
        if prompt_mask is not None and prompt_mask[:, past:].any():
            raise UserError(
                "with visibility='prompt' the whole prompt must come in the first call; it has ended already"
            )
        return torch.zeros_like(real)
    if prompt_mask is not None:
        is_prompt = F.pad(prompt_mask.bool(), (0, length - prompt_mask.shape[1])) & real
    elif labels is not None:
        is_prompt = (labels != IGNORED).cumsum(-1).eq(0) & real
    else:
        return real
    if not is_prompt.any(-1).all():
        row = int((~is_prompt.any(-1)).nonzero()[0])
        raise UserError(f"row {row} has no prompt; visibility='prompt' reads the prompt only: mark it in prompt_mask")
    ended = (real & ~is_prompt).cumsum(-1).bool()
    if (is_prompt & ended).any():
        row = int((is_prompt & ended).any(-1).nonzero()[0])
        raise UserError(f"prompt_mask of row {row} is not one prefix; train a conversation as one example per turn")
    return is_prompt


def verify_weights(folder: Path, config: CombinedConfig) -> None:
    """Check that weights and choices in `folder` are what `save_pretrained` wrote.

    Raises:
        UserError: If they are missing, cut off, or changed.
    """
    found = fingerprint_combined(folder)
    if config.weights_fingerprint != found:
        raise UserError(
            f"the model in {folder} is not what was saved (fingerprint {found}, its config.json says "
            f"{config.weights_fingerprint}); weights or configuration were changed or damaged: restore or save it again"
        )


def _read_config(folder: Path) -> CombinedConfig:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give a folder that save_pretrained wrote")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/config.json cannot be read: {error}") from error
    if not isinstance(config, CombinedConfig):
        raise UserError(f"{folder} holds a {config.model_type} model, not a combined model; give one trained here")
    return config


def _fetch(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision))
    except Exception as error:  # the hub client raises errors of several libraries
        raise UserError(
            f"{name!r} is no folder and could not be fetched from the hub ({type(error).__name__})"
        ) from error


AutoConfig.register(CombinedConfig.model_type, CombinedConfig)
AutoModelForCausalLM.register(CombinedConfig, CombinedModel)
