"""What training costs in arithmetic and memory, by formulas; `docs/planning.md` explains them."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from llm_modules.bridge import Bridge
from llm_modules.features import READ_TOKENS
from llm_modules.loss import rows_per_chunk
from llm_modules.modeling import CombinedModel
from llm_modules.optimizer import build_optimizer
from llm_modules.quantization import BYTES_PER_WEIGHT, Quantization
from llm_modules.readout import folding_pays
from llm_modules.settings import Settings
from llm_modules.shapes import Skeleton

Device = Literal["cpu", "gpu"]
FP32, BF16 = 4, 2  # bytes
UPDATE_PASSES = 10  # over every number: clipping reads, reads and writes gradients; AdamW reads four and writes three
LOGIT_PASSES = 9  # written; read for the largest; less it; exponents; their sum; divided by it
PROGRAM_BYTES: dict[Device, int] = {
    "cpu": 650_000_000,  # Python with torch, transformers and datasets; measured
    "gpu": 1_000_000_000,  # context and libraries of the accelerator; not measured
}


@dataclass(frozen=True)
class Lengths:
    """Tokens of an example or of a row of a batch, as the parts of the pair meet them.

    Args:
        read: Tokens that the source reads.
        written: Tokens that enter the generator.
        labelled: Tokens that carry loss.
    """

    read: float
    written: float
    labelled: float

    @classmethod
    def of(cls, skeleton: Skeleton, settings: Settings, *, tokens: float, prompt_tokens: float) -> "Lengths":
        """For an example of so many tokens, the prompt among them."""
        response = tokens - prompt_tokens
        labelled = response if settings.data.loss_on == "response" else tokens - 1
        model = skeleton.model
        if not isinstance(model, CombinedModel):
            return cls(0, tokens, labelled)
        if model.config.visibility != "prompt":
            return cls(tokens, tokens, labelled)
        window = prompt_tokens if model._window_size is None else model._window_size
        return cls(prompt_tokens, response + min(prompt_tokens, window), labelled)


@dataclass(frozen=True)
class Body:
    """A stack of decoder layers, as the formulas see it.

    Args:
        num_layers: Layers.
        width: Of the states.
        attention_width: Heads times their width.
        key_width: The same of keys and of values, which may have fewer heads.
        num_heads: Heads.
        feed_forward: Width inside the feed-forward part.
        num_weights: Parameters of the layers, without tables.
        is_gated: Whether the feed-forward part is gated and norms are written out in Python, as in llama.
        keeps_scores: Whether attention keeps its `length x length` scores for the backward pass.
    """

    num_layers: int
    width: int
    attention_width: int
    key_width: int
    num_heads: int
    feed_forward: int
    num_weights: int
    is_gated: bool
    keeps_scores: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Body":
        """Of a causal language model or a body of one."""
        body, config = model.base_model, model.config.get_text_config()
        heads = config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
        return cls(
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            attention_width=heads * head_width,
            key_width=(getattr(config, "num_key_value_heads", None) or heads) * head_width,
            num_heads=heads,
            feed_forward=inner or 4 * config.hidden_size,
            num_weights=_num(body) - sum(_num(m) for m in body.modules() if isinstance(m, nn.Embedding)),
            is_gated=any("gate_proj" in name for name, _ in body.named_modules()),
            keeps_scores=config._attn_implementation == "eager",
        )

    def forward_flops(self, tokens: float) -> float:
        """`tokens * (2 * weights + 4 * layers * attention_width * tokens)`: masked scores are counted, too."""
        return tokens * (2 * self.num_weights + 4 * self.num_layers * self.attention_width * tokens)

    def kept_bytes(self, tokens: float, *, score_bytes: int) -> float:
        """What the backward pass of one row needs; which tensors these are stands in `docs/planning.md`."""
        per_token = 2 * (self.attention_width + self.key_width)
        per_token += 6 * self.width + 4 * self.feed_forward if self.is_gated else 4 * self.width + 5 * self.feed_forward
        scores = self.num_heads * tokens * score_bytes if self.keeps_scores else 0
        return self.num_layers * tokens * (FP32 * per_token + scores)

    def working_bytes(self, tokens: float) -> float:
        """What the attention of one layer holds for a moment: scores, masked scores and their softmax."""
        return 3 * FP32 * self.num_heads * tokens**2 if self.keeps_scores else 0

    def reading_bytes(self, tokens: float, itemsize: int) -> float:
        """What one layer holds without a backward pass: states, queries, keys, values; three of the inner width."""
        return tokens * itemsize * (6 * self.width + 3 * self.feed_forward)


@dataclass(frozen=True)
class Arithmetic:
    """FLOPs of one example.

    Args:
        reading: The source's forward pass.
        learning: Forward and backward pass of all that trains, the head included.
        judging: Forward pass of all that trains, as validation needs it.
        head: What of `learning` is the head's: products of another shape, which run at another speed.
    """

    reading: float
    learning: float
    judging: float
    head: float


def num_by_part(skeleton: Skeleton) -> dict[str, int]:
    """Trainable parameters of bridge, generator and head."""
    model = skeleton.model
    if not isinstance(model, CombinedModel):
        return {"generator": model.num_parameters()}
    return {"bridge": _num(model.bridge), "generator": _num(model.generator), "head": _num(model.head)}


def arithmetic(skeleton: Skeleton, settings: Settings, lengths: Lengths, *, num_words: int) -> Arithmetic:
    """FLOPs of one example.

    Args:
        skeleton: What trains, and its source.
        settings: Of the run.
        lengths: Tokens of the example.
        num_words: Words in the softmax while training.
    """
    body, reading = _generator_body(skeleton), 0.0
    forward = body.forward_flops(lengths.written)
    if skeleton.source is not None and isinstance(skeleton.model, CombinedModel):
        source, config = Body.of(skeleton.source), skeleton.model.config
        reading = source.forward_flops(lengths.read) * max(config.taps) / source.num_layers
        forward += _bridge_flops(skeleton.model.bridge, lengths, width=config.d_generator)
    labelled = settings.training.batch_size * lengths.labelled
    head = _head_flops(skeleton, labelled, num_words=num_words) / settings.training.batch_size
    trained, frozen = _head_weights(skeleton, skeleton.model.config.vocab_size)
    return Arithmetic(reading, 3 * forward + head, forward + 2 * lengths.labelled * (trained + frozen), head)


def moved_bytes(skeleton: Skeleton, settings: Settings, lengths: Lengths, *, num_words: int) -> float:
    """Bytes that an update of the weights carries to and from memory beside its matrix products.

    Args:
        skeleton: What trains, and its source.
        settings: Of the run.
        lengths: Tokens of an example.
        num_words: Words in the softmax while training.
    """
    passes, num_weights = settings.training.gradient_accumulation_steps, skeleton.model.num_parameters()
    labelled = settings.training.batch_size * lengths.labelled
    added = 3 * num_weights * (passes - 1)  # two gradients read, their sum written
    if getattr(skeleton.model.config, "head", "new") == "new":  # read and written for each chunk, and to be scaled
        added += 2 * passes * _head_weights(skeleton, num_words)[0] * (_num_chunks(labelled, num_words) + 1)
    return FP32 * (UPDATE_PASSES * num_weights + added + LOGIT_PASSES * passes * labelled * num_words)


def memory_bytes(
    skeleton: Skeleton,
    settings: Settings,
    lengths: Lengths,
    *,
    device: Device,
    num_words: int,
    reads_once: bool,
    kept_knowledge: float,
) -> dict[str, float]:
    """Bytes by part while training; their sum is an upper bound, because not all peak at once.

    Args:
        skeleton: What trains, and its source.
        settings: Of the run.
        lengths: Tokens of the longest row of a batch.
        device: Where it trains.
        num_words: Words in the softmax while training.
        reads_once: Whether the source reads before training.
        kept_knowledge: Bytes of what the source read before training, which stay in the host's memory.
    """
    model, body, rows = skeleton.model, _generator_body(skeleton), settings.training.batch_size
    precision = settings.training.precision
    mixes = precision == "bfloat16" or (precision == "auto" and device == "gpu")  # both kinds of numbers are kept
    labelled = rows * lengths.labelled
    chunk = labelled * num_words / _num_chunks(labelled, num_words)
    kept = body.kept_bytes(lengths.written, score_bytes=FP32 + BF16 if mixes else FP32)
    working = rows * body.working_bytes(lengths.written) + chunk * (FP32 + (2 * BF16 if mixes else 0))
    kept += lengths.labelled * FP32 * body.width
    parts: dict[str, float] = {}
    if skeleton.source is not None and isinstance(model, CombinedModel):
        itemsize, source = getattr(torch, settings.model.source_dtype).itemsize, Body.of(skeleton.source)
        parts["source weights"] = source_bytes(skeleton.source, itemsize, settings.model.source_quantization)
        together = max(rows * lengths.read, READ_TOKENS) if reads_once else rows * lengths.read
        parts["source reading"] = source.reading_bytes(together, itemsize)
        kept += _bridge_bytes(model, lengths, keeps_scores=device == "cpu" and model.config.dropout > 0)
        if _folds(skeleton, labelled):
            working += 2 * FP32 * num_words * body.width  # the words' matrix behind the projection, and its gradient
    parts["trainable weights"] = model.num_parameters() * (FP32 + (BF16 if mixes else 0))
    parts["gradients"] = model.num_parameters() * FP32
    parts["optimizer states"] = optimizer_bytes(skeleton, settings)
    parts["kept for the backward pass"] = rows * kept
    parts["held for a moment"] = working
    if device == "cpu":
        parts["knowledge kept"] = kept_knowledge
    parts["program"] = PROGRAM_BYTES[device]
    return parts


def source_bytes(source: PreTrainedModel, itemsize: int, quantization: Quantization | None) -> float:
    """Bytes of the source's weights: its tables whole, its body as it is held."""
    whole = source.num_parameters()
    if quantization is None:
        return whole * itemsize
    tables = {
        id(table): table for table in (source.get_input_embeddings().weight, source.get_output_embeddings().weight)
    }
    kept = sum(table.numel() for table in tables.values())
    return kept * itemsize + (whole - kept) * BYTES_PER_WEIGHT[quantization]


def optimizer_bytes(skeleton: Skeleton, settings: Settings) -> float:
    """Muon keeps one number for each it trains, AdamW two."""
    groups = build_optimizer(skeleton.model, settings.training, decayed=()).param_groups
    return sum(FP32 * (1 if group["muon"] else 2) * p.numel() for group in groups for p in group["params"])


def _generator_body(skeleton: Skeleton) -> Body:
    model = skeleton.model
    return Body.of(model.generator if isinstance(model, CombinedModel) else model.model)


def _head_weights(skeleton: Skeleton, num_words: int) -> tuple[int, int]:
    """Weights that a labelled token passes on its way to logits over so many words: trained ones, frozen ones."""
    model = skeleton.model
    if isinstance(model, CombinedModel) and model.config.head == "source":
        return _num(model.head), num_words * model.config.d_source
    return num_words * _generator_body(skeleton).width, 0


def _head_flops(skeleton: Skeleton, labelled: float, *, num_words: int) -> float:
    """From states to the loss and back."""
    trained, frozen = _head_weights(skeleton, num_words)
    if not _folds(skeleton, labelled):
        return 2 * labelled * (3 * trained + 2 * frozen)
    narrow, wide = skeleton.model.config.d_generator, skeleton.model.config.d_source
    return 2 * num_words * narrow * (3 * labelled + 2 * wide)


def _folds(skeleton: Skeleton, labelled: float) -> bool:
    model = skeleton.model
    if not isinstance(model, CombinedModel) or model.config.head != "source" or model.config.start == "identity":
        return False
    return folding_pays(int(labelled), narrow=model.config.d_generator, wide=model.config.d_source)


def _num_chunks(labelled: float, num_words: int) -> int:
    return math.ceil(labelled / rows_per_chunk(num_words))


def _bridge_flops(bridge: Bridge, lengths: Lengths, *, width: int) -> float:
    """Forward pass: weights over knowledge meet what the source read, the others what enters the generator."""
    over_knowledge = _num(bridge.pre_projection) + _num(bridge.compress) + _num(bridge.skip_projection)
    over_knowledge += sum(_num(layer.key) + _num(layer.value) for layer in bridge._layers)
    attention = 4 * len(bridge._layers) * width * lengths.read
    return 2 * lengths.read * over_knowledge + lengths.written * (2 * (_num(bridge) - over_knowledge) + attention)


def _bridge_bytes(model: CombinedModel, lengths: Lengths, *, keeps_scores: bool) -> float:
    """What the bridge's backward pass of one row needs."""
    config = model.config
    d_source, d, num_layers = config.d_source, config.d_generator, config.num_cross_attention_layers
    middle, taps = (d_source + d) // 2, len(config.taps)
    knowledge = d_source * (1 + taps * (2 if taps > 1 else 1)) + 3 * middle + 2 * d + num_layers * (d_source + 2 * d)
    queries = num_layers * (11 * d + 2 * config.d_adapter)
    if config.visibility == "prompt":
        queries += d_source + 2 * d  # the response's own embeddings
    if config.start == "identity":
        queries += d_source  # the final state that the head adds to
    # with dropout a CPU keeps scores, what was dropped (1 byte) and what remains
    scores = num_layers * config.num_heads * lengths.read * (2 * FP32 + 1) if keeps_scores else 0
    return FP32 * (lengths.read * knowledge + lengths.written * queries) + lengths.written * scores


def _num(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
