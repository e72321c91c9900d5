"""A checkpoint of the published code, made into a combined model: every tensor is mapped, compared or named."""

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig

from llm_modules.checkpoint import read_checkpoint
from llm_modules.checksums import file_digest
from llm_modules.comparison import compare_source, name_of
from llm_modules.data.templates import with_template
from llm_modules.errors import UserError
from llm_modules.hub import fetch
from llm_modules.modeling import LEAK_WARNING, CombinedModel
from llm_modules.source import Source, SourceLike
from llm_modules.source_files import stored_config

SOURCE = "qwen.model."  # before the names of the source's own weights, which the published code saved too
GENERATOR = "gptneo.base_model.transformer."

# our beginning of a name -> the published one
BEGINNINGS = {
    "bridge.pre_projection.": "qwen.pre_proj.",
    "bridge.skip_projection.": "qwen.proj.",
    "bridge.compress.": "qwen.intermediate_layers.",
    "bridge.layers.": "qwen.cross_attention_layers.",
    "generator.": GENERATOR,
    "head.": "gptneo.new_lm_head.",
}
# within one of the bridge's layers
PARTS = {
    ".knowledge_norm.": ".cross_attn.norm1.",
    ".query_norm.": ".cross_attn.norm2.",
    ".query.": ".cross_attn.q_proj.",
    ".key.": ".cross_attn.k_proj.",
    ".value.": ".cross_attn.v_proj.",
    ".output.": ".cross_attn.out_proj.",
    ".adapter.down.": ".adapter.fc1.",
    ".adapter.up.": ".adapter.fc2.",
}
# never reached by the published forward, and why
UNUSED = {
    re.escape(GENERATOR) + r"wte\.weight": "the generator's own words; the bridge's states enter in their place",
    r"gptneo\.base_model\.lm_head\.weight": "the generator's old head, in whose place the new one stands",
    re.escape(GENERATOR) + r"h\.\d+\.attn\.attention\.(masked_)?bias": "attention masks, which are made anew",
    re.escape(SOURCE) + r".*rotary_emb\.inv_freq": "the source's rotary frequencies, which are made anew",
}


def published_name(name: str) -> str:
    """What the published checkpoint calls the tensor that is called `name` here."""
    ours, published = next(pair for pair in BEGINNINGS.items() if name.startswith(pair[0]))
    name = published + name.removeprefix(ours)
    if ours == "bridge.layers.":
        for part, published_part in PARTS.items():
            name = name.replace(part, published_part)
    return name


def import_published(
    checkpoint: str | Path,
    *,
    source: SourceLike,
    generator: str | Path | PreTrainedConfig,
    num_heads: int = 8,
) -> CombinedModel:
    """Make a combined model from a checkpoint of the published code (visibility `bidirectional`, head `new`).

    The file's tensors are mapped, never loaded as a whole, and the source in it is compared with the given one chunk
    by chunk, so that only one source is ever in memory. Says what it found and what it left out. That such a model
    leaks is not warned of here, where it was asked for by name, but whenever it is loaded again.

    Args:
        checkpoint: File that the published training saved.
        source: The source it was trained with.
        generator: Configuration of its generator, or a folder or hub id with a `config.json`; weights there are not
            read. Its attention heads, kinds and window leave no trace in the checkpoint and are taken from here.
        num_heads: Heads of the bridge's attention (8, as published); they leave no trace in the checkpoint either.

    Raises:
        UserError: If the file is not safe or not whole, or any tensor is missing, unknown, of another shape or not
            finite, or source or generator are not those it was trained with.
    """
    checkpoint = Path(checkpoint)
    weights, others = read_checkpoint(checkpoint)
    generator_config = _generator_config(generator)
    loaded = Source.of(source)
    _check_sizes(checkpoint, weights, loaded, generator_config)
    adapters = [weight for name, weight in weights.items() if name.endswith(".adapter.fc1.weight") and weight.dim()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=re.escape(LEAK_WARNING[:40]))
        model = CombinedModel.from_modules(
            loaded,
            generator_config,
            visibility="bidirectional",
            head="new",
            start="published",
            num_bridge_layers=max(1, _count_layers(weights, BEGINNINGS["bridge.layers."])),
            num_heads=num_heads,
            d_adapter=adapters[0].shape[0] if adapters else 256,
        ).eval()
    left_out = {name: why for name in weights for pattern, why in UNUSED.items() if re.fullmatch(pattern, name)}
    used = {name: weight for name, weight in weights.items() if name not in left_out}
    theirs = {name.removeprefix(SOURCE): used.pop(name) for name in list(used) if name.startswith(SOURCE)}
    _check_tensors(checkpoint, used, {published_name(name): weight for name, weight in model.state_dict().items()})
    compare_source(checkpoint, theirs, loaded)
    model.load_state_dict({name: used[published_name(name)] for name in model.state_dict()})
    if loaded.tokenizer is not None:
        model.tokenizer = with_template(loaded.tokenizer, "plain")
    _tell_left_out(left_out, others)
    return model


def import_folder(
    checkpoint: Path,
    out: Path,
    *,
    source: SourceLike,
    generator: str | Path | PreTrainedConfig,
    num_heads: int = 8,
    sha256: str | None = None,
) -> None:
    """Import a published checkpoint into a new folder, and say what is in it and how to go on.

    Raises:
        UserError: As `import_published`, or if `out` holds something already, or the file is not the one of `sha256`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} exists and is not empty; choose another folder, or remove it")
    if sha256 is not None and checkpoint.is_file() and (found := file_digest(checkpoint)) != sha256.lower():
        raise UserError(f"{checkpoint} has the SHA-256 {found}, not {sha256}; fetch the file that was meant")
    model = import_published(checkpoint, source=source, generator=generator, num_heads=num_heads)
    model.save_pretrained(out)
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in model.named_children()}
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(f"parameters: {parts}; {sum(counts.values()):,} in all, beside the source's")
    print(
        f"saved {out}. Its training leaked: with visibility 'bidirectional' every position reads the source's states "
        "of the tokens that it must predict, and when it writes there are none to read"
    )
    if model.tokenizer is None:
        print("the source has no tokenizer, so chat needs one in this folder first (tokenizer.save_pretrained)")
    print(f"  llm-modules chat {out}")
    print(f'  llm-modules generate {out} --prompt "Find the sum of 5 and 5." --temperature 0.9')


def _generator_config(generator: str | Path | PreTrainedConfig) -> PreTrainedConfig:
    config = _read_config(generator) if isinstance(generator, str | Path) else generator
    if config.model_type != "gpt_neo":
        raise UserError(
            f"the generator's configuration is of a {config.model_type!r}, and the published code writes with a "
            "'gpt_neo' only; give the configuration of the GPT-Neo it was trained with"
        )
    if config.num_heads < 1 or config.hidden_size % config.num_heads:
        raise UserError(
            f"the generator's num_heads={config.num_heads} does not divide its hidden_size={config.hidden_size}; give "
            "the configuration that it was trained with"
        )
    return config


def _read_config(generator: str | Path) -> PreTrainedConfig:
    folder = Path(generator).expanduser()
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or str(generator).count("/") > 1:
            raise UserError(f"generator={str(generator)!r} is no folder; give one with a config.json, or a hub id")
        folder = fetch(str(generator), otherwise="give a folder with its config.json", allow_patterns=["config.json"])
    if not (folder / "config.json").is_file():
        raise UserError(f"generator={str(generator)!r} holds no config.json; put the generator's there")
    return stored_config(folder)


def _count_layers(weights: Mapping[str, Tensor], beginning: str) -> int:
    return len({found[1] for name in weights if (found := re.match(re.escape(beginning) + r"(\d+)\.", name))})


def _check_sizes(checkpoint: Path, weights: Mapping[str, Tensor], source: Source, generator: PreTrainedConfig) -> None:
    """Refuse a source or generator of other sizes in a sentence, before every single tensor is of the wrong shape."""

    def size(name: str, axis: int) -> int | None:
        weight = weights.get(name)
        return weight.shape[axis] if weight is not None and weight.dim() == 2 else None

    text = source.config.get_text_config()
    inner = generator.intermediate_size or 4 * generator.hidden_size
    of_source, of_generator = name_of(source), "the generator's configuration"
    rows = (
        ("a source of another width", size("qwen.pre_proj.weight", 1), text.hidden_size, of_source),
        ("a source of another vocabulary", size("gptneo.new_lm_head.weight", 0), text.vocab_size, of_source),
        ("a generator of another width", size("qwen.proj.weight", 0), generator.hidden_size, of_generator),
        (
            "a generator with another number of layers",
            _count_layers(weights, f"{GENERATOR}h.") or None,
            generator.num_layers,
            of_generator,
        ),
        (
            "a generator with another number of positions",
            size(f"{GENERATOR}wpe.weight", 0),
            generator.max_position_embeddings,
            of_generator,
        ),
        ("a generator of another inner width", size(f"{GENERATOR}h.0.mlp.c_fc.weight", 0), inner, of_generator),
    )
    wrong = [
        f"{what} ({found} in the checkpoint, {given} in {where})"
        for what, found, given, where in rows
        if found not in (None, given)
    ]
    if wrong:
        raise UserError(
            f"{checkpoint} was made with {'; '.join(wrong)}; give the source and the generator it was trained with"
        )


def _check_tensors(checkpoint: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse, in one list, all tensors that are missing, unknown or of another shape or kind; then NaN and infinity."""
    problems = [f"missing: {name}, expected {list(expected[name].shape)}" for name in expected if name not in found]
    problems += [f"unknown: {name} {list(found[name].shape)}" for name in found if name not in expected]
    for name in (name for name in expected if name in found):
        if found[name].shape != expected[name].shape:
            problems.append(f"wrong shape: {name} {list(found[name].shape)}, expected {list(expected[name].shape)}")
        elif not found[name].is_floating_point():
            problems.append(f"no floating-point numbers: {name} is {found[name].dtype}")
    if problems:
        raise UserError(
            f"{checkpoint} does not hold what the published code saves for this source and generator; give the file as "
            f"it was saved. {len(problems)} tensors:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
    broken = [name for name, weight in found.items() if not weight.float().isfinite().all()]
    if broken:
        raise UserError(f"{checkpoint} holds NaN or infinity in {', '.join(broken)}; give a checkpoint saved earlier")


def _tell_left_out(left_out: Mapping[str, str], others: list[str]) -> None:
    by_reason = defaultdict(list)
    for name, why in left_out.items():
        by_reason[why].append(name)
    if others:
        by_reason["state of the training, which a model does not need"] = others
    for why, names in by_reason.items():
        print(f"left out: {', '.join(names)} ({why})")
