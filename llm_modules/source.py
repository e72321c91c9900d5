"""The source: a frozen causal language model that only ever reads."""

import inspect
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm_modules.blocks import blocks_of
from llm_modules.checksums import verify
from llm_modules.errors import UserError
from llm_modules.fingerprint import fingerprint_folder, fingerprint_model, weight_files
from llm_modules.quantization import Quantization, keep_packing_, loading_arguments, quantization_of
from llm_modules.readout import Readout
from llm_modules.source_files import (
    hub_commit,
    resolve_folder,
    source_identity,
    stored_folder,
    stored_tables,
    stored_tokenizer,
)

# On Hopper GPUs torch prefers cuDNN's attention, which makes a plan of some 50 ms for each length that it has not met:
# here each batch, and each token of an answer, has a length of its own (docs/performance.md).
torch.backends.cuda.enable_cudnn_sdp(False)


class _DeepEnoughError(Exception):
    """Stops the source's forward at the highest tap."""


class Source:
    """A frozen causal language model: reads token ids into states, embeds and speaks in its own vocabulary.

    Deliberately no `nn.Module`: a combined model that holds one neither trains, saves nor copies it, and many
    combined models can share one. Make one with [`Source.load`] or [`Source.of`].

    Args:
        config: The model's configuration.
        embedding: `[V, D]` input embedding table.
        output_matrix: `[V, D]` output matrix.
        output_bias: `[V]`, or `None`.
        model: The whole model; `None` if only the tables are loaded (knowledge then comes from elsewhere).
        source_id: Where the weights came from, if they are stored.
        revision: Revision on the hub.
        folder: Local folder of the stored weights.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        embedding: Tensor,
        output_matrix: Tensor,
        output_bias: Tensor | None = None,
        model: PreTrainedModel | None = None,
        source_id: str | None = None,
        revision: str | None = None,
        folder: Path | None = None,
    ):
        text_config = config.get_text_config()
        expected = (text_config.vocab_size, text_config.hidden_size)
        for name, table in (("embedding table", embedding), ("output matrix", output_matrix)):
            if tuple(table.shape) != expected:
                raise UserError(
                    f"the source's {name} has shape {tuple(table.shape)}, not [vocab_size, hidden_size] = {expected}; "
                    "choose a source whose embeddings are as wide as its states"
                )
        self.config = config
        self.embedding = embedding.detach()
        self.output_matrix = output_matrix.detach()
        self.output_bias = None if output_bias is None else output_bias.detach()
        self.model = model
        self.source_id = source_id
        self.revision = revision
        self.folder = folder

    @classmethod
    def of(
        cls,
        source: "SourceLike",
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        quantization: Quantization | None = None,
    ) -> "Source":
        """A source from whatever names one: a source, a model, a configuration (random weights), an id or a folder.

        A model given as an object is frozen and put in eval mode in place, and keeps its dtype.
        """
        if isinstance(source, Source):
            return source
        if isinstance(source, PreTrainedConfig):
            return cls._from_model(AutoModelForCausalLM.from_config(source, dtype=dtype))
        if isinstance(source, PreTrainedModel):
            folder = stored_folder(source)
            source_id = source_identity(source.name_or_path) if folder else None
            return cls._from_model(source, source_id=source_id, revision=hub_commit(folder), folder=folder)
        return cls.load(source, revision=revision, dtype=dtype, quantization=quantization)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        quantization: Quantization | None = None,
        tables_only: bool = False,
    ) -> "Source":
        """Load a source from a hub id, a folder, a `.gguf` file, or a built-in name (`"default"`).

        Args:
            source: Where it is.
            revision: Branch, tag or commit on the hub.
            dtype: Of the source alone; what trains has its own. On CPU, bf16 is slower than fp32.
            quantization: Hold the body's matrices in `"8bit"` or `"4bit"` (NF4), through bitsandbytes.
            tables_only: Load the embedding table and the output matrix and leave the body out.

        Raises:
            UserError: If it is not there, holds no safetensors weights, or cannot be reached.
        """
        folder = resolve_folder(source, revision)
        stored: dict[str, Any] = {
            "source_id": source_identity(source),
            "revision": revision and hub_commit(folder),
            "folder": folder,
        }
        if tables_only:
            config, tables = stored_tables(folder, dtype)
            if quantization is not None:  # of the body that was left out, so that knowledge of it is known as such
                config.quantization_config = loading_arguments(quantization, dtype)["quantization_config"]
            return cls(config, **tables, **stored)
        weight_files(folder)
        verify(folder)
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **loading_arguments(quantization, dtype),
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{folder} cannot be read as a causal language model ({error}); its config.json or weights are "
                "missing, cut off or damaged: fetch or save it again"
            ) from error
        if info["missing_keys"]:  # transformers fills them with random numbers
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise UserError(f"{folder} lacks weights of a {type(model).__name__} ({missing}); fetch or save it again")
        return cls._from_model(model, **stored)

    @classmethod
    def _from_model(cls, model: PreTrainedModel, **stored: Any) -> "Source":
        model.requires_grad_(False).eval()
        keep_packing_(model)
        head = model.get_output_embeddings()
        if head is None:
            raise UserError(f"{type(model).__name__} has no output matrix; a source must be a causal language model")
        return cls(
            model.config,
            embedding=model.get_input_embeddings().weight,
            output_matrix=head.weight,
            output_bias=getattr(head, "bias", None),
            model=model,
            **stored,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Source":
        """Itself: a copy of a combined model shares the frozen source."""
        return self

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the stored weights; independent of the dtype they are loaded in."""
        if self.folder is not None:
            return fingerprint_folder(self.folder)
        return fingerprint_model(self.model)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer stored beside the weights, if any."""
        if self.folder is None or not list(self.folder.glob("*token*")):
            return None
        return stored_tokenizer(self.folder)

    @property
    def device(self) -> torch.device:
        """Where the tables are, and the body if there is one."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """What the source computes in; the trained parts have their own."""
        return self.embedding.dtype

    @property
    def quantization(self) -> Quantization | None:
        """How the body's matrices are held, if not whole."""
        return quantization_of(self.config)

    def to(self, device: torch.device) -> "Source":
        """Move to a device, in place.

        Raises:
            UserError: If the source is quantised, which is done where it is loaded.
        """
        if self.quantization is not None and device.type != self.device.type:
            raise UserError(
                f"a source in {self.quantization} was made on {self.device} and cannot move to {device}; load it where "
                "the model is, or load it whole"
            )
        if self.model is not None:
            if self.quantization is None:
                self.model.to(device)
            self.embedding = self.model.get_input_embeddings().weight.detach()
            self.output_matrix = self.model.get_output_embeddings().weight.detach()
        else:
            self.embedding, self.output_matrix = self.embedding.to(device), self.output_matrix.to(device)
        if self.output_bias is not None:
            self.output_bias = self.output_bias.to(device)
        return self

    @torch.no_grad()
    def read(self, input_ids: Tensor, *, attention_mask: Tensor, taps: list[int], cache: Cache | None = None) -> Tensor:
        """States of the tapped layers, `[batch, length, taps, D]`, in the source's dtype.

        Autocast is off meanwhile: what the source says does not depend on whether it is asked while something trains.

        Args:
            input_ids: `[batch, length]` the tokens to read now.
            attention_mask: `[batch, past + length]` over all tokens read so far, 0 on padding.
            taps: Indices into `hidden_states`, ascending; the last layer's means after the final norm.
            cache: Keys and values of what was read before; extended in place.

        Raises:
            UserError: If only the tables of this source are loaded, or the text is too long for it.
        """
        if self.model is None:
            raise UserError("this source was loaded without its body and cannot read; pass knowledge, or load it whole")
        if self._limit is not None and attention_mask.shape[1] > self._limit:  # else no device need be waited for
            self.check_length(int(attention_mask.sum(-1).max()))
        length = input_ids.shape[1]
        kwargs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        body = self.model.base_model
        if "position_ids" in inspect.signature(body.forward).parameters:
            kwargs["position_ids"] = positions(attention_mask)[:, -length:]
        kwargs |= {"past_key_values": cache, "use_cache": cache is not None}
        last = self.config.get_text_config().num_hidden_layers
        with torch.autocast(input_ids.device.type, enabled=False):
            if taps == [last]:
                return body(**kwargs).last_hidden_state.unsqueeze(2)
            if taps[-1] < last:
                return torch.stack(self._read_up_to(body, taps, kwargs), dim=2)
            outputs = body(**kwargs, output_hidden_states=taps)
            return torch.stack([outputs.hidden_states[tap] for tap in taps], dim=2)

    def _read_up_to(self, body: PreTrainedModel, taps: list[int], kwargs: dict[str, Any]) -> list[Tensor]:
        """Run the body only as far as the highest tap: layers above it would be computed for nothing."""
        blocks = blocks_of(body)
        states: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])
            if len(states) == len(taps):
                raise _DeepEnoughError

        # hidden_states[tap] is what enters layer `tap`
        hooks = [blocks[tap].register_forward_pre_hook(keep, with_kwargs=True) for tap in taps]
        try:
            body(**kwargs)
        except _DeepEnoughError:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return states

    def check_length(self, num_tokens: int) -> None:
        """Refuse a text longer than the source was made to read.

        Raises:
            UserError: If so many tokens are more than its positions.
        """
        if self._limit is not None and num_tokens > self._limit:
            raise UserError(
                f"{num_tokens} tokens are more than the source's {self._limit} positions; shorten the prompt, or use a "
                "source that reads longer ones"
            )

    def room_left(self, num_tokens: int) -> int | None:
        """How many more tokens it can read after so many; `None` where there is no end."""
        return None if self._limit is None else self._limit - num_tokens

    @property
    def _limit(self) -> int | None:
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def embed(self, input_ids: Tensor) -> Tensor:
        """`[batch, length]` token ids to `[batch, length, D]` rows of the frozen embedding table."""
        return F.embedding(input_ids, self.embedding)

    def readout(self, states: Tensor, words: Tensor | None = None, *, projection: nn.Linear | None = None) -> Readout:
        """Final states `[..., D]` to logits over the vocabulary, or over `words` `[num_words]` only.

        With a `projection` from `d` to `D` the states are `[..., d]`, and it is the words' matrix that goes through the
        projection, once, instead of every state: the same logits, for less where there are many states.
        """
        matrix = self.output_matrix if words is None else self.output_matrix[words]
        bias = self.output_bias if words is None or self.output_bias is None else self.output_bias[words]
        if projection is not None:
            bias = projection.bias @ matrix.T.to(projection.bias.dtype) + (0 if bias is None else bias)
            matrix = matrix.to(projection.weight.dtype) @ projection.weight
        config = self.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        if scale != 1.0:
            bias = None if bias is None else bias * scale
            if projection is None:
                states = states * scale
            else:
                matrix = matrix * scale  # the smaller of the two, and the states stay those of the projection
        return Readout(states.to(matrix.dtype), matrix, bias, getattr(config, "final_logit_softcapping", None))  # Gemma


SourceLike: TypeAlias = str | Path | PreTrainedModel | PreTrainedConfig | Source


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token among its row's real tokens: `[batch, length]`, 0 on left padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
