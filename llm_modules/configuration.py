"""What a combined model is made of: two sub-configurations and the few choices that join them."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from llm_modules.errors import UserError
from llm_modules.quantization import Quantization

VISIBILITIES = ("prompt", "causal", "bidirectional")
HEADS = ("source", "new")
STARTS = ("published", "identity")
PLACEMENTS = ("front", "interleaved")


class CombinedConfig(PreTrainedConfig):
    """Configuration of a [`CombinedModel`]: source, generator, and the bridge between them.

    Args:
        source: Configuration of the frozen source.
        generator: Configuration of the trained generator; any decoder that takes `inputs_embeds`.
        source_id: Where the source's weights come from (hub id, folder, or a built-in name); `None` for a source that
            was never stored and must be handed to `from_pretrained`.
        source_revision: Revision of `source_id` on the hub.
        source_fingerprint: Digest of the source's stored weights; another source is refused on loading.
        source_quantization: How the source's weights were held in training (`"8bit"`, `"4bit"`); loaded alike.
        visibility: Which knowledge a position may read: `"prompt"` (default: decoding then costs the generator only),
            `"causal"`, or `"bidirectional"` (leaks the answer; only to reproduce the paper).
        head: `"source"` (default: no new vocabulary-sized parameters, and words never seen in training can still be
            said) or `"new"`, as published.
        start: `"identity"` makes step 0 the source itself and is the default for `causal` with `head="source"`, where
            it holds at every position; `"published"` (random bridge, open gates) is the default elsewhere.
        taps: Source layers whose states are the knowledge, as indices into `hidden_states`: 0 is the embeddings, `-1`
            the final state after the last norm (default, as published).
        generator_window: With `visibility="prompt"`, the most prompt tokens that enter the generator, the last ones;
            the bridge reads the whole prompt all the same. Default: half the generator's position table, which leaves
            the other half to the response; all of the prompt where the generator has no table.
        placement: `"front"` (default, as published): cross-attention layers before the generator alone;
            `"interleaved"`: also inside it, before every `interleave_every`-th of its blocks.
        interleave_every: With `placement="interleaved"`, the blocks that have one: every k-th (default: 1, each).
        num_bridge_layers: Cross-attention layers before the generator. Default: 1 (2 were published, and learn more
            slowly: docs/evidence.md), and 0 with `placement="interleaved"`.
        num_heads: Heads of each (8, as published); must divide the generator's width.
        d_adapter: Width of the adapter behind each cross-attention (256, as published).
        pre_projection: Whether the knowledge passes a linear layer `D -> D` before all else (as published).
        gate_start: How far the gates are open before the first step, in (0, 1), on average and about: it sets their
            bias. Default: 0.018 with `start="identity"`, about a half with `start="published"`.
        dropout: On cross-attention weights while training (0.1, as published).
        weights_fingerprint: Digest of the trained weights and of the choices that say how to use them, written by
            `save_pretrained` and checked on loading.

    Raises:
        UserError: For a value outside its rule, naming value, rule and way out.
    """

    model_type = "llm_modules"
    sub_configs_defaults: ClassVar = {
        "source": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "generator": SubConfigSpec(config_class=AutoConfig, model_type="gpt_neo"),
    }

    source: PreTrainedConfig = None  # both may be given as a dict, and are
    generator: PreTrainedConfig = None  # configurations once `__post_init__` has run
    source_id: str | None = None
    source_revision: str | None = None
    source_fingerprint: str | None = None
    source_quantization: Quantization | None = None
    visibility: str = "prompt"
    head: str = "source"
    start: str | None = None
    taps: list[int] = None  # type: ignore[assignment] # a list once `__post_init__` has run
    generator_window: int | None = None
    placement: str = "front"
    interleave_every: int | None = None
    num_bridge_layers: Any = None  # a number once `__post_init__` has run
    num_heads: int = 8
    d_adapter: int = 256
    pre_projection: bool = True
    gate_start: float | None = None
    dropout: float = 0.1
    weights_fingerprint: str | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.visibility == "block":
            raise UserError("visibility='block' is planned for a later version; use 'prompt' or 'causal'")
        for name, known in (("visibility", VISIBILITIES), ("head", HEADS), ("placement", PLACEMENTS)):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"{name}={value!r} is not known; choose one of {', '.join(known)}")
        self.taps = self._resolve_taps(self.taps)
        if self.start is None:
            identity_everywhere = self.visibility == "causal" and self.head == "source" and self.reads_final_state
            self.start = "identity" if identity_everywhere else "published"
        self._check_start()
        self._place_layers()
        self._check_widths()
        self._check_window()

    @property
    def d_source(self) -> int:
        """Width `D` of the source's states."""
        return self.source.get_text_config().hidden_size

    @property
    def d_generator(self) -> int:
        """Width `d` of the generator's states."""
        return self.generator.get_text_config().hidden_size

    @property
    def vocab_size(self) -> int:
        """Size `V` of the source's vocabulary, in which the pair reads and writes."""
        return self.source.get_text_config().vocab_size

    @property
    def num_source_layers(self) -> int:
        """Layers of the source; also the tap of its final state."""
        return self.source.get_text_config().num_hidden_layers

    @property
    def num_interleaved_layers(self) -> int:
        """Cross-attention layers inside the generator."""
        return 0 if self.interleave_every is None else self._num_generator_blocks // self.interleave_every

    @property
    def num_cross_attention_layers(self) -> int:
        """Cross-attention layers in all."""
        return self.num_bridge_layers + self.num_interleaved_layers

    @property
    def _num_generator_blocks(self) -> int:
        return self.generator.get_text_config().num_hidden_layers

    @property
    def reads_final_state(self) -> bool:
        """Whether the source's final state is among the taps (`start="identity"` adds to it)."""
        return self.num_source_layers in self.taps

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The generator's configuration: it is what `generate` sizes caches and lengths by."""
        return self.generator.get_text_config()

    def _resolve_taps(self, taps: list[int] | None) -> list[int]:
        layers = self.num_source_layers
        if taps is None:
            return [layers]
        resolved = [tap + layers + 1 if tap < 0 else tap for tap in taps]
        if not taps or len(set(resolved)) != len(resolved) or not all(0 <= tap <= layers for tap in resolved):
            raise UserError(
                f"taps={taps} must name different layers of the source, 0 (embeddings) to {layers} (or -1) for the "
                "final state; leave it out for the final state alone"
            )
        return sorted(resolved)

    def _check_start(self) -> None:
        if self.start not in STARTS:
            raise UserError(f"start={self.start!r} is not known; choose one of {', '.join(STARTS)}")
        if self.start == "identity" and self.head != "source":
            raise UserError(
                f"start='identity' needs head='source' to speak as the source does, but head={self.head!r}; "
                "use head='source' or start='published'"
            )
        if self.start == "identity" and not self.reads_final_state:
            raise UserError(
                f"start='identity' adds to the source's final state, which is not among taps={self.taps}; "
                "add -1 to taps or use start='published'"
            )

    def _place_layers(self) -> None:
        interleaved, every = self.placement == "interleaved", self.interleave_every
        if every is not None and not interleaved:
            raise UserError(
                f"interleave_every={every} goes with placement='interleaved', and placement is {self.placement!r}; "
                "leave it out or set placement='interleaved'"
            )
        if interleaved:
            self.interleave_every = every = 1 if every is None else every
            if not 1 <= every <= self._num_generator_blocks:
                raise UserError(
                    f"interleave_every={every} must be 1 to {self._num_generator_blocks}, the blocks of the generator"
                )
        if self.num_bridge_layers is None:
            self.num_bridge_layers = 0 if interleaved else 1

    def _check_window(self) -> None:
        if self.generator_window is None:
            return
        if self.visibility != "prompt":
            raise UserError(
                f"generator_window={self.generator_window} goes with visibility='prompt', where the bridge reads what "
                f"the window leaves out; with {self.visibility!r} every token enters the generator: leave it out"
            )
        if not self.num_cross_attention_layers:
            raise UserError(
                f"generator_window={self.generator_window} leaves prompt tokens to cross-attention alone, and "
                "num_bridge_layers=0 has none; leave it out or add a layer"
            )
        if self.generator_window < 1:
            raise UserError(f"generator_window={self.generator_window} must be at least 1")

    def _check_widths(self) -> None:
        d, h = self.d_generator, self.num_heads
        if h < 1 or d % h:
            divisors = ", ".join(str(n) for n in range(1, 33) if d % n == 0)
            raise UserError(f"d_generator={d} is not divisible by num_heads={h}; choose one of {divisors}")
        for name, low in (("num_bridge_layers", 0), ("d_adapter", 1)):
            if getattr(self, name) < low:
                raise UserError(f"{name}={getattr(self, name)} must be at least {low}")
        if self.gate_start is not None and not 0 < self.gate_start < 1:
            raise UserError(
                f"gate_start={self.gate_start} must lie between 0 and 1; choose for example 0.5, or leave it out"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout} must be in [0, 1)")
