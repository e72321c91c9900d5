"""What a training run can be told: the YAML file of `llm-modules train CONFIG key=value …`, checked in full.

The tables of `docs/` are made from the descriptions here (`known_keys`).
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from llm_modules.errors import MissingFileError, UserError
from llm_modules.tasks import FILE_TASKS, check_name

Fraction = Annotated[float, Field(ge=0, lt=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


MOST_VALUES, MOST_CHARACTERS, MOST_DEPTH = 100_000, 200_000, 100  # of a file; values with aliases written out


class Section(BaseModel):
    """A mapping of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Checked = TypeVar("Checked", bound=Section)


class ModelSettings(Section):
    """Which source and generator are joined, and how."""

    pretrained: str | None = Field(
        None,
        description="Trained pair to go on from: a folder or hub id. All choices below then are that pair's and may "
        "not be given, save `source` and `source_dtype`: where the source lies here, and how it is held.",
    )
    source: str | None = Field(
        "default",
        description="Frozen model: `default` (embedded), a hub id, a folder or a GGUF file. Null trains the generator "
        "alone, with its own tokenizer and head, to compare with.",
    )
    source_revision: str | None = Field(None, description="Revision of the source on the hub; null is the newest.")
    source_fingerprint: str | None = Field(
        None, description="Fingerprint that the source's weights must have (in a model's config.json); null takes any."
    )
    source_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Number type of the frozen source alone; what trains is always kept in float32."
    )
    source_quantization: Literal["8bit", "4bit"] | None = Field(
        None,
        description="Hold the source's matrices in `8bit` or `4bit` (bitsandbytes): less memory, other states "
        "(docs/performance.md says what that costs). Kept with the pair, and loaded so again. Null: whole.",
    )
    generator: str | dict[str, Any] = Field(
        default_factory=lambda: {"model_type": "gpt_neo"},
        description="Small model that writes: an id or folder (pretrained weights), or the fields of a transformers "
        "config with its `model_type` (random weights), or `{first_blocks_of_source: 4}` (a trainable copy of the "
        "source's first four blocks).",
    )
    visibility: Literal["prompt", "causal", "bidirectional"] = Field(
        "prompt",
        description="Which knowledge a position may read: the `prompt`, every token up to itself (`causal`), or all, "
        "the future included (`bidirectional`, only to reproduce the paper).",
    )
    head: Literal["source", "new"] = Field(
        "source", description="Output matrix: the source's, frozen, or a `new` one as published."
    )
    start: Literal["published", "identity"] | None = Field(
        None,
        description="`published`: random bridge, gates open; `identity`: the pair starts as the source. Null: "
        "`identity` with visibility `causal` and head `source`, else `published`.",
    )
    taps: list[int] | None = Field(
        None,
        min_length=1,
        description="Source layers whose states are mixed by learned weights; -1 is after the final norm. Null: it "
        "alone.",
    )
    generator_window: AtLeastOne | None = Field(
        None,
        description="With `prompt` visibility: most prompt tokens that enter the generator, the last ones; the bridge "
        "reads all. Null: half its position table, or all where it has none.",
    )
    placement: Literal["front", "interleaved"] = Field(
        "front",
        description="Where Enhanced Cross-Attention stands: in `front` of the generator, as published, or "
        "`interleaved` with its blocks.",
    )
    interleave_every: AtLeastOne | None = Field(
        None,
        description="With `interleaved`: blocks that have a layer before them, every k-th. Null: every one.",
    )
    num_bridge_layers: AtLeastZero | None = Field(
        None,
        description="Layers of Enhanced Cross-Attention in front; 0 with `front` leaves the projections alone. Null: "
        "1 (published: 2), and 0 with `interleaved`.",
    )
    num_heads: AtLeastOne = Field(8, description="Heads of each; must divide the generator's width.")
    d_adapter: AtLeastOne = Field(256, description="Width of the adapter in each layer.")
    pre_projection: bool = Field(
        True, description="Whether the source's states pass a linear layer before all else, as published."
    )
    gate_start: OpenFraction | None = Field(
        None,
        description="How far the gates are open at the start, about and on average. Null: 0.018 with start `identity`, "
        "a half with `published`.",
    )
    dropout: Fraction = Field(0.1, description="Dropout on attention weights in the bridge.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_planned(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("visibility") == "block":
            raise ValueError("visibility 'block' is planned for a later round; choose prompt, causal or bidirectional")
        return values

    @model_validator(mode="after")
    def _one_way_to_begin(self) -> "ModelSettings":
        given = self.model_fields_set
        if self.pretrained is not None and (other := given - {"pretrained", "source", "source_dtype"}):
            raise ValueError(
                f"pretrained={self.pretrained} brings its own {', '.join(sorted(other))}; leave {_them(other)} out"
            )
        if self.source is None and (other := given - {"source", "generator"}):
            raise ValueError(
                f"source is null, so the generator trains alone and {', '.join(sorted(other))} would mean nothing; "
                f"leave {_them(other)} out or name a source"
            )
        return self

    @model_validator(mode="after")
    def _generator_is_complete(self) -> "ModelSettings":
        if isinstance(self.generator, dict) and not {"model_type", "first_blocks_of_source"} & self.generator.keys():
            raise ValueError("generator lacks model_type; add one that transformers knows, such as gpt_neo or llama")
        return self


def _them(names: set[str]) -> str:
    return "it" if len(names) == 1 else "them"


class DataSettings(Section):
    """What is trained on, in which form: a `task`, a `train_file`, or a task that reads one."""

    task: str | None = Field(
        None,
        description="Task: `arithmetic`, `facts`, `tickets` or `reasoning-gym:NAME` generate their data; `gsm8k` and "
        "`math-word-problems` read train_file in a form of their own.",
    )
    train_file: str | None = Field(
        None, description="JSONL, JSON, CSV or Parquet file, folder, or hub id of a data set."
    )
    validation_file: str | None = Field(None, description="The same for validation; null takes a share of training.")
    num_examples: AtLeastOne | None = Field(
        None, description="Examples to generate (task) or conversations to draw by seed (train_file); null is all."
    )
    variations: AtLeastZero = Field(
        0,
        description="So many variations beside each training problem of `math-word-problems`: with a number that does "
        "not matter, or asked about something else.",
    )
    template: Literal["chat", "plain"] = Field(
        "chat", description="The tokenizer's chat template, or the published `plain` form."
    )
    max_length: AtLeastOne = Field(1024, description="Longest prompt and response in tokens; longer ones are left out.")
    cut_to: AtLeastOne | None = Field(
        None,
        description="Cut what is kept to so many tokens, as published (2048); null never cuts. How many were cut is "
        "printed.",
    )
    loss_on: Literal["response", "all"] = Field(
        "response", description="Tokens that carry loss; `all` includes the prompt, as published."
    )
    validation_fraction: Fraction = Field(0.1, description="Share for validation if there is no validation_file.")
    seed: int = Field(0, description="Seed of generated data, of the draw and of the split.")

    @model_validator(mode="after")
    def _one_origin(self) -> "DataSettings":
        if self.task is not None:
            check_name(self.task)
        if self.task == "jsonl":
            raise ValueError("the task jsonl is for evaluation; to train, leave task out and give train_file")
        if self.task in FILE_TASKS and self.train_file is None:
            raise ValueError(f"the task {self.task} reads its problems from a file; give train_file")
        if self.task not in FILE_TASKS and (self.task is None) == (self.train_file is None):
            given = "both are given" if self.task else "neither is given"
            raise ValueError(f"give exactly one of task and train_file; {given}")
        if self.variations and self.task != "math-word-problems":
            raise ValueError("variations are made of the task math-word-problems alone; leave them out")
        if self.validation_file and self.train_file is None:
            raise ValueError("validation_file goes with train_file; a task makes its own validation data")
        return self


class TrainingSettings(Section):
    """How long, how fast and where to."""

    output_dir: Path = Field(Path("runs/train"), description="Folder for checkpoints, the model and the loss picture.")
    num_epochs: Positive = Field(3.0, description="Passes over the data; parts are allowed. Not beside max_steps.")
    epoch_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of the training data in an epoch, drawn anew for each (published: 0.3)."
    )
    max_steps: AtLeastOne | None = Field(None, description="Updates of the weights, in place of num_epochs.")
    batch_size: AtLeastOne = Field(
        8, description="Examples in one forward pass; several processes share them (docs/scaling.md)."
    )
    tokens_per_batch: AtLeastOne | None = Field(
        None,
        description="In place of batch_size (which then counts for nothing): as many examples of similar length as fit "
        "in so many tokens, padding counted, at least one. With epoch_fraction an epoch takes that share of the "
        "batches.",
    )
    gradient_accumulation_steps: AtLeastOne = Field(1, description="Forward passes for one update of the weights.")
    learning_rate_bridge: Positive = Field(1e-4, description="Peak learning rate of the bridge (published: 1e-4).")
    learning_rate_generator: Positive = Field(5e-5, description="That of the generator (published: 5e-5).")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="`muon`: orthogonal updates for the generator's matrices, AdamW for the rest; or all `adamw`.",
    )
    muon_learning_rate: Positive = Field(0.02, description="Muon's peak learning rate; unused by `adamw`.")
    adam_beta2: Fraction = Field(0.999, description="AdamW's decay of squared gradients; 0.98 suits short runs.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay; norms and biases have none.")
    warmup_steps: float = Field(0.05, ge=0, description="Updates of warm-up; below 1 it is a share of all updates.")
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="Course of both learning rates after the warm-up."
    )
    max_grad_norm: Positive = Field(1.0, description="Gradients are clipped to this norm.")
    early_stopping_patience: AtLeastOne | None = Field(
        None, description="Evaluations without improvement before training stops (published: 5); null never stops."
    )
    early_stopping_min_delta: float = Field(1e-4, ge=0, description="Least fall of the loss that is an improvement.")
    sampled_words: int | None = Field(
        None,
        ge=0,
        description="Take the training loss over the words of the training answers plus this many random ones; null "
        "is the full vocabulary. Validation always uses the full one.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of training; `auto` is bfloat16 where the accelerator has it, float32 on a CPU."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Compute the layers of bridge and generator again in the backward pass instead of keeping what "
        "they computed: less memory, more time, the same gradients.",
    )
    seed: int = Field(0, description="Seed of weights, dropout and the order of examples.")
    eval_steps: AtLeastOne | None = Field(None, description="Updates between evaluations; null is once an epoch.")
    save_steps: AtLeastOne | None = Field(None, description="Updates between checkpoints; null is once an epoch.")
    save_total_limit: AtLeastOne = Field(2, description="Checkpoints to keep; older ones are deleted.")
    resume: bool | Literal["auto"] = Field(
        "auto",
        description="Continue from the newest checkpoint in output_dir: `auto` if there is one, so that the same "
        "command goes on after a stop; `true` insists on one; `false` refuses a folder that holds anything.",
    )
    allow_leak: bool = Field(
        False, description="Train with `bidirectional` visibility all the same, to reproduce the paper."
    )
    features: str = Field(
        "memory",
        description="What the source says about the examples: read once and kept in `memory` (if it fits, else in "
        "every step), `online` in every step, `auto` from a store in the cache that is filled first, or the folder or "
        "URL of one that `llm-modules extract` wrote.",
    )
    features_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = Field(
        None,
        description="Number type of the store (docs/features.md says what each costs). Null: the source's own, or "
        "whatever the store named has.",
    )
    sharding: Literal["none", "fsdp2"] = Field(
        "none",
        description="With several processes: `none` keeps all that trains in each of them (DDP), `fsdp2` divides "
        "weights, gradients and optimizer states among them. Files are whole either way.",
    )
    timeout_s: Positive = Field(
        600.0, description="With several processes: how long one waits for the others before it gives up, in seconds."
    )
    tensorboard: bool = Field(False, description="Log to tensorboard (needs the extra `tensorboard`).")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if self.max_steps is not None and "num_epochs" in self.model_fields_set:
            raise ValueError("give num_epochs or max_steps, not both; each says how long to train")
        return self

    @model_validator(mode="after")
    def _optimizer_can_be_divided(self) -> "TrainingSettings":
        if self.sharding == "fsdp2" and self.optimizer == "muon":
            raise ValueError("muon turns whole matrices, and sharding=fsdp2 divides them; set optimizer=adamw")
        return self

    @model_validator(mode="after")
    def _features_are_named(self) -> "TrainingSettings":
        if not self.features.strip():
            raise ValueError("features is empty; give memory, online, auto, or the folder or URL of a store")
        return self


class Settings(Section):
    """All of a training run."""

    model: ModelSettings = Field(default_factory=ModelSettings, description="The pair.")
    data: DataSettings = Field(description="What it is trained on.")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="How it is trained.")

    @model_validator(mode="after")
    def _store_has_a_source(self) -> "Settings":
        if self.model.source is None and self.training.features not in ("memory", "online"):
            raise ValueError(
                f"model.source is null, so nothing reads and training.features={self.training.features} would mean "
                "nothing; leave it out or name a source"
            )
        return self

    @model_validator(mode="after")
    def _early_stopping_has_data(self) -> "Settings":
        validates = self.data.validation_file is not None or self.data.validation_fraction > 0
        if self.training.early_stopping_patience is not None and not validates:
            raise ValueError(
                "training.early_stopping_patience needs validation data; set data.validation_fraction above 0 or "
                "data.validation_file"
            )
        return self


def load_settings(path: str | Path, overrides: list[str] | None = None) -> Settings:
    """Read a YAML file and apply `section.key=value` overrides, whose values are YAML too.

    Raises:
        MissingFileError: The file is not there.
        UserError: It is empty or no mapping, a key is unknown, or a value is not allowed.
    """
    tree = read_tree(path, needs="at least the section data with task or train_file", model=Settings)
    for override in overrides or []:
        set_key_(tree, *parse_override(override))
    return checked(tree, model=Settings, origin=str(path))


def read_tree(path: str | Path, *, needs: str, model: type[Section]) -> dict[str, Any]:
    """The mapping that a YAML file holds, unchecked.

    Args:
        path: Of the file.
        needs: What it must hold, for the message on an empty one.
        model: What it will be checked against.

    Raises:
        MissingFileError: The file is not there.
        UserError: It is empty or no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"the configuration {path} is not there; check the path (relative to {Path.cwd()})")
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}); save it as such") from None
    tree = _parse(text, str(path))
    if tree is None:
        raise UserError(f"{path} is empty; it needs {needs}")
    if not isinstance(tree, dict):
        keys = ", ".join(key for key in _keys(model) if "." not in key)
        raise UserError(f"{path} holds a {type(tree).__name__}; write a mapping with {keys}")
    return tree


def checked(tree: dict[str, Any], *, model: type[Checked], origin: str) -> Checked:
    """A tree of settings as a `model`, every key known and every value allowed.

    Args:
        tree: As YAML gives it.
        model: What to make of it.
        origin: Where it stands, for the message.

    Raises:
        UserError: A key is unknown, or a value is not allowed.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, origin, known=_keys(model))) from None


def known_keys() -> dict[str, FieldInfo]:
    """Every dotted key with its type, default and description, in the order of the file."""
    return {
        f"{section}.{key}": field for section, model in _SECTIONS.items() for key, field in model.model_fields.items()
    }


def settings_page() -> str:
    """`docs/settings.md`: every key, its values, default and meaning (`python -m llm_modules.settings`)."""
    lines = [
        "# Settings",
        "",
        "Keys of the YAML file of `llm-modules train CONFIG`; on the command line: `section.key=value`. Made by",
        "`python -m llm_modules.settings > docs/settings.md` from the code; a test keeps it true.",
    ]
    for section, model in _SECTIONS.items():
        lines += ["", f"## {section}", "", str(model.__doc__), "", "| key | default | meaning |", "|---|---|---|"]
        for key, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True, validated_data={})
            shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
            lines.append(f"| `{section}.{key}` | `{shown}` | {field.description} |")
    return "\n".join(lines) + "\n"


_SECTIONS: dict[str, type[Section]] = {"model": ModelSettings, "data": DataSettings, "training": TrainingSettings}


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number (plain YAML 1.1 wants 1.0e-4) and refuses a key given twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse what is nested too deeply before the rest is read, which takes time that grows with the square."""
        if self.depth > MOST_DEPTH:
            raise yaml.YAMLError(f"more than {MOST_DEPTH} values are nested within one another")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def compose_document(self) -> yaml.Node:
        """Refuse what a few lines of aliases would make endless, before anything is made of it."""
        root = super().compose_document()
        assert root is not None  # noqa: S101 - there is a document, or this is not called
        _size(root, {})
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_SCIENTIFIC = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


_NESTED = re.compile(rf"(?:[\[{{]\s*){{{MOST_DEPTH + 1}}}")


def _parse(text: str, origin: str) -> Any:
    if len(text) > MOST_CHARACTERS:  # its reader takes seconds for these
        raise UserError(f"{origin} is no configuration: it has more than {MOST_CHARACTERS:,} characters")
    if _NESTED.search(text):  # looks ahead for a thousand characters at each
        raise UserError(f"{origin} is not valid YAML: more than {MOST_DEPTH} values are nested within one another")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:  # a 13th month, a number of 5,000 digits
        raise UserError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node comes to, its aliases written out.

    Raises:
        yaml.YAMLError: If they are too many, or it holds itself.
    """
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # until it is known: a node within itself has no end
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inside = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = 1 + sum(_size(part, known) for part in inside)
    if known[id(node)] > MOST_VALUES:
        raise yaml.YAMLError(f"with its aliases written out it holds more than {MOST_VALUES:,} values")
    return known[id(node)]


def parse_override(override: str) -> tuple[str, Any]:
    """The dotted key and the value, which is YAML, of `section.key=value`.

    Raises:
        UserError: If it has another form.
    """
    dotted, equals, text = override.partition("=")
    *parents, key = dotted.strip().split(".")
    if not equals or not parents or not all([*parents, key]):
        raise UserError(f"the override {override!r} is not section.key=value, such as training.max_steps=500")
    return dotted.strip(), _parse(text, f"the override {override!r}")


def set_key_(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key in the tree of settings; mappings on the way to it are made.

    Raises:
        UserError: If something on the way is no mapping.
    """
    *parents, key = dotted.split(".")
    place = tree
    for depth, name in enumerate(parents, start=1):
        if place.get(name) is None:  # not there, or left empty in the file
            place[name] = {}
        below = place[name]
        if not isinstance(below, dict):
            raise UserError(f"cannot set {dotted}: {'.'.join(parents[:depth])} is {below!r}, not a mapping")
        place = below
    place[key] = value


def _explain(error: ValidationError, origin: str, *, known: Sequence[str]) -> str:
    """Say in one line for each problem what is wrong and what would be right."""
    problems = []
    for detail in error.errors(include_url=False):
        dotted = ".".join(map(str, detail["loc"]))
        if detail["type"] == "extra_forbidden":
            problems.append(f"unknown key {dotted}; the nearest known key is {nearest_key(dotted, known)}")
        elif detail["type"] == "missing":
            problems.append(f"{dotted} is missing; add it")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            given = "" if detail["type"] == "value_error" else f" (given: {detail['input']!r})"
            problems.append(f"{dotted}: {message}{given}" if dotted else f"{message}{given}")
    return f"{origin}: " + "\n".join(problems)


def nearest_key(unknown: str, known: Sequence[str]) -> str:
    """Find the known key most like an unknown one, by its whole path or by its last part."""

    def likeness(key: str) -> float:
        last = SequenceMatcher(None, unknown.rpartition(".")[2], key.rpartition(".")[2]).ratio()
        return last + SequenceMatcher(None, unknown, key).ratio()

    dotted = [key for key in known if "." in key]
    return max(dotted if "." in unknown and dotted else known, key=likeness)


def _keys(model: type[Section]) -> list[str]:
    """Every key of a file, and those of its sections with a dot."""
    found = []
    for name, field in model.model_fields.items():
        found.append(key := field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += [f"{key}.{below}" for below in field.annotation.model_fields]
    return found


if __name__ == "__main__":
    print(settings_page(), end="")
