"""What a recipe needs before it runs: parameters, memory, arithmetic, hours, dollars and disk (`docs/planning.md`)."""

import math
from dataclasses import dataclass

import torch

from llm_modules.baselines import GeneratorAlone
from llm_modules.corpus import Corpus, Given, Schedule, corpus_of
from llm_modules.costs import (
    FP32,
    Arithmetic,
    Device,
    Lengths,
    arithmetic,
    memory_bytes,
    moved_bytes,
    num_by_part,
    optimizer_bytes,
)
from llm_modules.errors import UserError
from llm_modules.modeling import CombinedModel
from llm_modules.settings import Settings
from llm_modules.shapes import Skeleton, skeleton, tokenizer_of
from llm_modules.store.encoding import bytes_per_token
from llm_modules.training import MAX_KNOWLEDGE_BYTES

DEVICES: tuple[Device, Device] = ("cpu", "gpu")


@dataclass(frozen=True)
class Plan:
    """What a training run needs; `str` of it is the table that `llm-modules plan` prints.

    Args:
        trainable: Parameters that train, by part.
        frozen: Parameters of the source.
        corpus: The data.
        schedule: Epochs and steps.
        per_example: FLOPs of one example of mean length.
        moved_per_step: Bytes that an update carries to and from memory beside its matrix products.
        reads_once: Whether the source reads before training, and its knowledge is kept in memory or in a store.
        knowledge_bytes: What the source says about all examples takes.
        memory: Bytes by part, for each kind of device.
        disk: Bytes by what is stored.
        device: Where training would run on this machine.
        tflops: Arithmetic that the device sustains, in 10^12 a second.
        gb_per_s: What it carries to and from memory, in 10^9 bytes a second.
        dollars_per_hour: Price of the device.
        notes: What the reader should know beside.
    """

    trainable: dict[str, int]
    frozen: int
    corpus: Corpus
    schedule: Schedule
    per_example: Arithmetic
    moved_per_step: float
    reads_once: bool
    knowledge_bytes: float
    memory: dict[Device, dict[str, float]]
    disk: dict[str, float]
    device: Device
    tflops: float
    gb_per_s: float
    dollars_per_hour: float
    notes: tuple[str, ...] = ()

    @property
    def num_trainable(self) -> int:
        """All parameters that train."""
        return sum(self.trainable.values())

    @property
    def flops_per_step(self) -> float:
        """FLOPs of one update of the weights."""
        return self.flops_per_epoch / self.schedule.steps_per_epoch

    @property
    def flops_per_epoch(self) -> float:
        """FLOPs of an epoch's training, without validation and without what is read once."""
        reading = 0.0 if self.reads_once else self.per_example.reading
        return self.schedule.examples_per_epoch * (reading + self.per_example.learning)

    @property
    def flops(self) -> dict[str, float]:
        """FLOPs of the whole run, by what they are for."""
        examples = self.schedule.examples_per_epoch * self.schedule.num_epochs
        judged = self.schedule.num_evaluations * self.corpus.num_validation
        read = self.corpus.num_examples if self.reads_once else examples + judged
        return {
            "source": read * self.per_example.reading,
            "training": examples * self.per_example.learning,
            "validation": judged * self.per_example.judging,
        }

    @property
    def hours(self) -> float:
        """At `tflops` and `gb_per_s`, one after the other."""
        moved = self.schedule.num_steps * self.moved_per_step
        return (sum(self.flops.values()) / (self.tflops * 1e12) + moved / (self.gb_per_s * 1e9)) / 3600

    @property
    def dollars(self) -> float:
        """At `dollars_per_hour`."""
        return self.hours * self.dollars_per_hour

    @property
    def summary(self) -> str:
        """What the header of a recipe says."""
        memory, disk = (sum(sizes.values()) / 1e9 for sizes in (self.memory["gpu"], self.disk))
        return (
            f"{memory:.0f} GB of GPU memory, {self.hours:.1f} hours and {self.dollars:.2f} dollars at "
            f"{self.tflops:g} TFLOP/s and {self.gb_per_s:g} GB/s, {disk:.0f} GB of disk"
        )

    def __str__(self) -> str:
        corpus, schedule = self.corpus, self.schedule
        tokens = schedule.examples_per_epoch * corpus.tokens_per_example
        reads = "once, before training" if self.reads_once else "in every step"
        flops = self.flops
        lines = [
            "parameters",
            *(_line(f"  {part}", f"{num:,}") for part, num in self.trainable.items()),
            _line("  trainable", f"{self.num_trainable:,}"),
            _line("  frozen (source)", f"{self.frozen:,}"),
            f"data ({corpus.origin})",
            _line("  examples for training", f"{corpus.num_training:,}"),
            _line("  examples for validation", f"{corpus.num_validation:,}"),
            _line("  tokens of an example", f"{corpus.tokens_per_example:,.0f}", f"prompt {corpus.prompt_tokens:,.0f}"),
            _line("  tokens per epoch", f"{tokens:,.0f}", f"{schedule.examples_per_epoch:,} examples"),
            _line("  tokens in all", f"{tokens * schedule.num_epochs:,.0f}", f"{schedule.num_epochs:.3g} epochs"),
            f"work, 10^12 FLOP (the source reads {reads})",
            _line("  a step", f"{self.flops_per_step / 1e12:,.3f}", f"{schedule.num_steps:,} steps"),
            _line("  an epoch", f"{self.flops_per_epoch / 1e12:,.1f}", f"{schedule.steps_per_epoch:,} steps"),
            *(_line(f"  in all: {part}", f"{flop / 1e12:,.1f}") for part, flop in flops.items()),
            _line("  in all", f"{sum(flops.values()) / 1e12:,.1f}"),
            _line("moved beside, GB a step", f"{self.moved_per_step / 1e9:,.2f}"),
            _line(f"hours at {self.tflops:g} TFLOP/s, {self.gb_per_s:g} GB/s", f"{self.hours:,.2f}"),
            _line(f"dollars at {self.dollars_per_hour:g} an hour", f"{self.dollars:,.2f}"),
            _line(f"memory, GB (here: {self.device.upper()})", "CPU", "     GPU"),
            *(_line(f"  {part}", *(f"{self._gb(device, part):8.2f}" for device in DEVICES)) for part in self._parts),
            _line("  together, at most", *(f"{sum(self.memory[device].values()) / 1e9:8.2f}" for device in DEVICES)),
            "disk, GB",
            *(_line(f"  {part}", f"{size / 1e9:.2f}") for part, size in self.disk.items()),
            _line("  together", f"{sum(self.disk.values()) / 1e9:.2f}"),
            _line("knowledge of all examples, GB", f"{self.knowledge_bytes / 1e9:.2f}"),
            *(f"note: {note}" for note in self.notes),
            f"needs: {self.summary}",
        ]
        return "\n".join(lines)

    @property
    def _parts(self) -> list[str]:
        return list(dict.fromkeys(part for device in DEVICES for part in self.memory[device]))

    def _gb(self, device: Device, part: str) -> float:
        return self.memory[device].get(part, 0.0) / 1e9


def plan(
    settings: Settings,
    *,
    given: Given | None = None,
    corpus: Corpus | None = None,
    tflops: float = 50.0,
    gb_per_s: float = 300.0,
    dollars_per_hour: float = 0.8,
) -> Plan:
    """Work out what training needs, without reading or making any weights.

    Args:
        settings: Of the run.
        given: What the user says about the data.
        corpus: The data's numbers; worked out from settings and `given` if left out.
        tflops: Arithmetic that the device sustains, in 10^12 a second.
        gb_per_s: What it carries to and from memory, in 10^9 bytes a second.
        dollars_per_hour: Its price.

    Raises:
        UserError: For settings, data or numbers that cannot be used.
    """
    notes: list[str] = []
    bones = skeleton(settings.model, report=notes.append)
    model, training = bones.model, settings.training
    if corpus is None:
        name, revision = settings.model.source, settings.model.source_revision
        own = settings.model.pretrained or (settings.model.generator if name is None else name)
        tokenizer = tokenizer_of(own, revision=revision) if isinstance(own, str) else None
        corpus = corpus_of(settings.data, given or Given(), tokenizer=tokenizer, vocab_size=model.config.vocab_size)
    notes.extend(_too_long(model, corpus))
    usual, fullest = (_in_examples(settings, tokens) for tokens in (corpus.tokens_per_example, corpus.longest))
    schedule = Schedule.of(usual.training, corpus)
    mean = Lengths.of(bones, settings, tokens=corpus.tokens_per_example, prompt_tokens=corpus.prompt_tokens)
    longest = Lengths.of(bones, settings, tokens=corpus.longest, prompt_tokens=corpus.longest_prompt)
    num_words = _num_words(model.config.vocab_size, training.sampled_words, corpus)
    knowledge = _knowledge_bytes(bones, settings, corpus.num_examples * mean.read)
    stores = knowledge > 0 and training.features not in ("memory", "online")
    reads_once = stores or (training.features == "memory" and 0 < knowledge <= MAX_KNOWLEDGE_BYTES)
    if getattr(model.config, "visibility", None) == "bidirectional" and not training.allow_leak:
        notes.append("training refuses visibility='bidirectional' unless training.allow_leak=true")
    if training.early_stopping_patience is not None:
        notes.append("hours and dollars are for all steps; early stopping may end sooner")
    if training.max_steps is None and corpus.origin != "counted":
        notes.append("steps, hours and dollars follow from the number of examples and their tokens, see data")
    return Plan(
        trainable=num_by_part(bones),
        frozen=0 if bones.source is None else bones.source.num_parameters(),
        corpus=corpus,
        schedule=schedule,
        per_example=arithmetic(bones, usual, mean, num_words=num_words),
        moved_per_step=moved_bytes(bones, usual, mean, num_words=num_words),
        reads_once=reads_once,
        knowledge_bytes=knowledge,
        memory={
            device: memory_bytes(
                bones,
                fullest,
                longest,
                device=device,
                num_words=num_words,
                reads_once=reads_once,
                kept_knowledge=knowledge if reads_once and not stores else 0,
            )
            for device in DEVICES
        },
        disk=_disk_bytes(bones, settings, schedule) | ({"feature store": knowledge} if stores else {}),
        device="gpu" if torch.accelerator.is_available() else "cpu",
        tflops=tflops,
        gb_per_s=gb_per_s,
        dollars_per_hour=dollars_per_hour,
        notes=tuple(notes),
    )


def _in_examples(settings: Settings, tokens: float) -> Settings:
    """The same batches counted in examples, where they are made by a budget of tokens: as many as it holds of these."""
    budget = settings.training.tokens_per_batch
    if budget is None:
        return settings
    counted = {"tokens_per_batch": None, "batch_size": max(1, int(budget // tokens))}
    return settings.model_copy(update={"training": settings.training.model_copy(update=counted)})


def _too_long(model: CombinedModel | GeneratorAlone, corpus: Corpus) -> list[str]:
    """Refuse what training would refuse; where the data were not counted, only warn.

    Raises:
        UserError: If the longest example that was counted needs more positions than the generator has.
    """
    prompt = math.ceil(corpus.longest_prompt)
    try:
        model.check_room(prompt, corpus.longest - prompt)
    except UserError as error:
        if corpus.origin == "counted":
            raise
        return [f"an example as long as the settings allow would be refused: {error}"]
    return []


def _num_words(vocab_size: int, sampled_words: int | None, corpus: Corpus) -> int:
    """Words in the softmax while training; all of them where those of the training data were not counted."""
    if sampled_words is None or corpus.num_words is None:
        return vocab_size
    return min(vocab_size, corpus.num_words + sampled_words)


def _knowledge_bytes(bones: Skeleton, settings: Settings, tokens: float) -> float:
    if not isinstance(bones.model, CombinedModel):
        return 0.0
    config, dtype = bones.model.config, settings.training.features_dtype or settings.model.source_dtype
    return tokens * bytes_per_token(dtype, num_taps=len(config.taps), d_source=config.d_source)


def _disk_bytes(bones: Skeleton, settings: Settings, schedule: Schedule) -> dict[str, float]:
    weights = bones.model.num_parameters() * FP32
    found = {
        "checkpoints": schedule.num_checkpoints * (weights + optimizer_bytes(bones, settings)),
        "trained model": weights,
    }
    if bones.source is not None:
        stored = bones.source.config.dtype
        itemsize = stored.itemsize if isinstance(stored, torch.dtype) else FP32
        found["source"] = bones.source.num_parameters() * itemsize
    return found


def _line(name: str, *values: str) -> str:
    """A line of the table: its name, a figure, and what belongs to it."""
    first, *rest = values
    return f"{name:<34}{first:>20}  {'  '.join(rest)}".rstrip()
