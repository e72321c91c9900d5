"""The combined model: source -> bridge -> generator -> head."""

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from llm_modules.attention import VisibleKnowledge
from llm_modules.bridge import Bridge, Read
from llm_modules.configuration import CombinedConfig
from llm_modules.errors import UserError
from llm_modules.generation import CombinedGenerationMixin
from llm_modules.generator import GeneratorLike, build_generator, load_generator, position_limit
from llm_modules.interleaving import interleave_, reading
from llm_modules.knowledge import CombinedCache, Knowledge, resolve_prompt_mask
from llm_modules.loss import LossVocabulary, cross_entropy, label_rows
from llm_modules.quantization import Quantization
from llm_modules.readout import FoldedHead, Readout, folding_pays
from llm_modules.source import Source, SourceLike, positions
from llm_modules.storage import StoredModel
from llm_modules.window import Window

LEAK_WARNING = (
    "visibility='bidirectional' lets every position read the source's states of the tokens it must predict: training "
    "losses mean nothing and generation meets a situation never trained in. It is here to reproduce the paper only."
)


class CombinedModel(StoredModel, CombinedGenerationMixin):
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
    supports_gradient_checkpointing = True  # in the layers of bridge and generator
    _supports_sdpa = True

    def __init__(self, config: CombinedConfig, generator: PreTrainedModel | None = None):
        super().__init__(config)
        if config.visibility == "bidirectional":
            warnings.warn(LEAK_WARNING, stacklevel=2)
        self._attached_source: Source | None = None
        self._folded_head: FoldedHead | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None  # saved beside the weights; the source's if left out
        self.bridge = Bridge(config)
        self.generator = build_generator(config.generator) if generator is None else generator
        width_out = config.d_source if config.head == "source" else config.vocab_size
        self.head = nn.Linear(config.d_generator, width_out, bias=config.head == "source")
        if config.start == "identity":
            nn.init.zeros_(self.head.weight)  # step 0 adds nothing to the source's own final state
            nn.init.zeros_(self.head.bias)
            self.bridge.close_gates_()
        if config.gate_start is not None:
            self.bridge.open_gates_(config.gate_start)
        if config.interleave_every is not None:
            interleave_(self.generator, every=config.interleave_every, first=config.num_bridge_layers)
        self._position_limit = position_limit(self.generator)
        self._window_size = self._choose_window()
        self._generator_takes_positions = "position_ids" in inspect.signature(self.generator.forward).parameters
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module initialises itself when built, and loading refuses missing weights."""

    # -- making; saving and loading stand in storage.py --------------------------------------------------------------

    @classmethod
    def from_modules(
        cls,
        source: SourceLike,
        generator: GeneratorLike,
        *,
        source_revision: str | None = None,
        source_dtype: torch.dtype = torch.float32,
        source_quantization: Quantization | None = None,
        **choices: Any,
    ) -> "CombinedModel":
        """Join a source and a generator by a new bridge.

        Args:
            source: Id, folder, `.gguf` file, loaded model, [`Source`], or a configuration (random weights).
            generator: Id, folder or loaded model (pretrained weights), a configuration (random weights), or
                `{"first_blocks_of_source": number}` (a trainable copy of the source's).
            source_revision: Revision of a hub id.
            source_dtype: Dtype the source is loaded in; what trains is always fp32. Default fp32, the fastest on CPU.
            source_quantization: Hold the source's matrices in `"8bit"` or `"4bit"`; it is loaded so again later.
            **choices: `visibility`, `head`, `start`, `taps`, `placement`, `num_bridge_layers`, `num_heads`,
                `d_adapter`, `dropout` and others; defaults and their reasons stand in [`CombinedConfig`].

        Raises:
            UserError: For choices that contradict each other or modules that do not fit.
        """
        loaded = Source.of(source, revision=source_revision, dtype=source_dtype, quantization=source_quantization)
        generator_config, body = load_generator(generator, source=loaded)
        # copies: PreTrainedModel sets the attention implementation of its sub-configurations, and a source whose
        # own configuration lost it silently attends to its future
        config = CombinedConfig(
            source=copy.deepcopy(loaded.config), generator=copy.deepcopy(generator_config), **choices
        )
        return cls(config, body).attach_source_(loaded)

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
        if knowledge is not None and knowledge.states.shape[0] != batch:
            knowledge = knowledge.repeat_interleave(batch // knowledge.states.shape[0])

        is_prompt = embeddings = window = None
        if visibility == "prompt":
            is_prompt = resolve_prompt_mask(prompt_mask, labels, attention_mask, past=past, length=length)
            if labels is not None or length == 1 or not is_prompt.all():  # a prompt alone enters by its states
                embeddings = self._embed_response(input_ids)
            window = self._open_window(is_prompt, attention_mask, past_key_values)
            self._check_length(attention_mask, window, past_key_values)
            knowledge, visible = self._prompt_knowledge(input_ids, is_prompt, knowledge, past_key_values)
            if window is not None:
                visible = replace(visible, query_columns=window.columns)
        else:
            self._check_length(attention_mask, None, past_key_values)
            knowledge = self._running_knowledge(input_ids, attention_mask, knowledge, past_key_values)
            visible = VisibleKnowledge(
                attention_mask.bool(), first_query=past, bidirectional=visibility == "bidirectional"
            )
        z, read = self.bridge(
            None if knowledge is None else knowledge.states,
            visible=visible,
            embeddings=embeddings,
            is_prompt=is_prompt,
            window=window,
            remember=None if past_key_values is None else past_key_values.remember,
        )
        states = self._generate_states(z, read, attention_mask, window, past_key_values)
        final = self._final_states(knowledge, is_prompt, length) if self.config.start == "identity" else None

        if labels is not None:
            predicts, targets = label_rows(labels)
            self._check_inside(window, predicts, "labels")
            vocabulary = None if loss_vocabulary is None else loss_vocabulary.to(states.device)
            readout = self._read_out(
                states[predicts],
                None if final is None else final[predicts],
                None if vocabulary is None else vocabulary.words,
            )
            loss = cross_entropy(readout, targets, vocabulary=vocabulary, num_items=num_items_in_batch)
            return CausalLMOutputWithPast(loss=loss)
        kept = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        if window is not None:
            asked = torch.zeros_like(attention_mask, dtype=torch.bool)
            asked[:, kept] = attention_mask[:, kept].bool()
            self._check_inside(window, asked, "logits")
        logits = self._read_out(states[:, kept], None if final is None else final[:, kept]).logits()
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def _embed_response(self, input_ids: Tensor) -> Tensor:
        """Response tokens as the generator meets them, `[batch, length, d]`; each word is projected once."""
        enter = self.bridge.response_embedding
        assert enter is not None  # noqa: S101 - `prompt` visibility has one
        if input_ids.shape[1] == 1:  # while decoding hardly a word stands twice
            return enter(self.source.embed(input_ids).to(self.dtype))
        words, places = input_ids.unique(return_inverse=True)
        return F.embedding(places, enter(self.source.embed(words).to(self.dtype)))

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

    def check_room(self, prompt_len: int, response_len: int) -> None:
        """Refuse what source or generator cannot hold, before anything is computed.

        Raises:
            UserError: If a prompt and a response of so many tokens need more positions than one of them has.
        """
        if self._attached_source is not None:
            self.source.check_length(prompt_len + (0 if self.config.visibility == "prompt" else response_len))
        self._check_positions(self._num_entering(prompt_len, response_len))

    def room_left(self, prompt_len: int) -> int | None:
        """Most tokens that an answer to such a prompt may have; `None` where there is no end."""
        entering = self._num_entering(prompt_len, 0)
        of_generator = None if self._position_limit is None else self._position_limit - entering
        of_source = None if self.config.visibility == "prompt" else self.source.room_left(prompt_len)
        return min((room for room in (of_generator, of_source) if room is not None), default=None)

    def _num_entering(self, prompt_len: int, response_len: int) -> int:
        """How many tokens of a prompt and a response enter the generator."""
        return (prompt_len if self._window_size is None else min(prompt_len, self._window_size)) + response_len

    def _check_positions(self, entering: int) -> None:
        if self._position_limit is not None and entering > self._position_limit:
            if self._window_size is not None:
                way_out = "shorten the response or set a smaller generator_window"
            elif self.config.visibility == "prompt":
                way_out = "shorten the input, add a cross-attention layer, which reads prompts of any length,"
            else:
                way_out = "shorten the input, use visibility='prompt' for long prompts,"
            raise UserError(
                f"{entering} tokens are more than the generator's {self._position_limit} positions; {way_out} or use a "
                "generator with a longer or no position table (a rotary one, for example)"
            )

    def _choose_window(self) -> int | None:
        """Most prompt tokens that enter the generator; `None` for all of them."""
        limit, chosen = self._position_limit, self.config.generator_window
        if self.config.visibility != "prompt" or limit is None or not self.config.num_cross_attention_layers:
            return chosen  # without cross-attention what does not enter would be lost
        if chosen is not None and chosen >= limit:
            raise UserError(
                f"generator_window={chosen} leaves no room for a response in the generator's {limit} positions; choose "
                f"fewer, for example {limit // 2}"
            )
        return limit // 2 if chosen is None else chosen

    def _open_window(self, is_prompt: Tensor, attention_mask: Tensor, cache: CombinedCache | None) -> Window | None:
        """Where a prompt is too long for the generator: the columns that enter it. The cache remembers them."""
        if self._window_size is None or (cache is not None and cache.get_seq_length()):
            return None
        window = Window.over(is_prompt, attention_mask.bool(), size=self._window_size)
        if window is not None and cache is not None:
            cache.window_mask, cache.num_left_out = window.mask, window.num_left_out
        return window

    def _check_inside(self, window: Window | None, wanted: Tensor, what: str) -> None:
        if window is not None and window.lacks(wanted):
            raise UserError(
                f"{what} are wanted at prompt tokens before the last {self._window_size}, which do not enter the "
                "generator; take the loss on the response only, ask for fewer logits (logits_to_keep), or set a larger "
                "generator_window"
            )

    def _generate_states(
        self, z: Tensor, read: Read, attention_mask: Tensor, window: Window | None, cache: CombinedCache | None
    ) -> Tensor:
        """The generator's last states `[batch, length, d]`, zero where a column does not enter it."""
        if window is not None:
            attention_mask = window.mask.to(attention_mask.dtype)
        elif cache is not None:
            attention_mask = cache.generator_mask(attention_mask)
        kwargs = {"inputs_embeds": z, "attention_mask": attention_mask, "use_cache": cache is not None}
        if self._generator_takes_positions:
            kwargs["position_ids"] = positions(attention_mask)[:, -z.shape[1] :]
        past = None if cache is None else cache.self_attention_cache
        with reading(read):
            states = self.generator(**kwargs, past_key_values=past).last_hidden_state
        return states if window is None else window.put_back(states)

    def _final_states(self, knowledge: Knowledge | None, is_prompt: Tensor | None, length: int) -> Tensor | None:
        """The source's final states `[batch, length, D]`, zero where it read nothing; `None` if nowhere."""
        if knowledge is None:  # `prompt` visibility, past the prompt
            return None
        final = knowledge.states[:, :, -1]  # taps ascend, so the final state is the last
        if is_prompt is None:
            return final
        return F.pad(final, (0, 0, 0, length - final.shape[1])) * is_prompt[..., None]

    def _read_out(self, states: Tensor, final: Tensor | None = None, words: Tensor | None = None) -> Readout:
        """The head: generator's states `[..., d]`, and the source's final ones `[..., D]` to add to, to logits."""
        if final is not None:
            return self.source.readout(final + self.head(states), words)
        if self._folded_head is not None and words is None and not torch.is_grad_enabled():
            if self._folded_head.is_of(*self._head_parts):
                return self._folded_head.read(states)
            self._folded_head = None
        if self.config.head == "new":
            return Readout(states, self.head.weight if words is None else self.head.weight[words])
        num_rows, (wide, narrow) = states.shape[:-1].numel(), self.head.weight.shape
        if folding_pays(num_rows, narrow=narrow, wide=wide):
            return self.source.readout(states, words, projection=self.head)
        return self.source.readout(self.head(states), words)

    @torch.no_grad()
    def fold_head_(self, num_rows: int = 1) -> None:
        """Make the head ready for decoding so many rows: the same logits from fewer bytes, or faster ones.

        The source's output matrix goes through the head's projection once, so that a token reads `[V, d]` of it; a new
        head is copied into the layout that a single row reads fastest. `generate` calls this. The matrix is kept, `V d`
        numbers, until the head changes or trains.
        """
        if not self._folding_helps(num_rows):
            self._folded_head = None
            return
        if self._folded_head is None or not self._folded_head.is_of(*self._head_parts):
            any_rows = self.head.weight.new_empty(0, self.config.d_generator)
            folded = (
                Readout(any_rows, self.head.weight)
                if self.config.head == "new"
                else self.source.readout(any_rows, projection=self.head)
            )
            self._folded_head = FoldedHead(folded, *self._head_parts)
        self._folded_head.lay_out_(num_rows)

    def _folding_helps(self, num_rows: int) -> bool:
        """Whether decoding so many rows gains by a head made ready."""
        config = self.config
        if config.head == "new":
            return num_rows == 1 and self.device.type == "cpu"  # only another layout
        matrix = self.source.output_matrix
        takes_final = config.start == "identity" and config.visibility != "prompt"
        smaller = self.head.weight.element_size() * config.d_generator < matrix.element_size() * config.d_source
        return smaller and not takes_final

    @property
    def _head_parts(self) -> tuple[Tensor, ...]:
        parts = tuple(self.head.parameters())
        return parts if self.config.head == "new" else (self.source.output_matrix, *parts)

    def train(self, mode: bool = True) -> "CombinedModel":
        """As for every module; what decoding had prepared is dropped."""
        if mode:
            self._folded_head = None
        return super().train(mode)

    def _check_length(self, attention_mask: Tensor, window: Window | None, cache: CombinedCache | None) -> None:
        # padding counts: GPT-Neo, for one, keeps a square mask of its positions
        num_left_out = window.num_left_out if window is not None else 0 if cache is None else cache.num_left_out
        self._check_positions(attention_mask.shape[1] - num_left_out)


AutoConfig.register(CombinedConfig.model_type, CombinedConfig)
AutoModelForCausalLM.register(CombinedConfig, CombinedModel)
