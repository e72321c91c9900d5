"""Train bridge and generator on transformers' Trainer."""

import math
import os
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import is_tensorboard_available

from llm_modules.baselines import GeneratorAlone
from llm_modules.data.batches import in_batches, padding_share
from llm_modules.data.dataset import Collator, LossOn, padding_id, prepare, split
from llm_modules.data.overlap import refuse_shared_examples, remember_prompts
from llm_modules.data.records import Conversation, read_conversations
from llm_modules.data.templates import Example, with_template
from llm_modules.errors import UserError
from llm_modules.features import knowledge_bytes, with_knowledge
from llm_modules.loading import load_causal_lm
from llm_modules.modeling import CombinedModel
from llm_modules.plots import loss_figure, save_figure
from llm_modules.processes import agree, first_does, is_first, num_processes, process_index, together
from llm_modules.run_folder import (
    CHECKPOINTS,
    MODEL,
    claimed,
    examples_digest,
    last_checkpoint,
    refuse_other_examples,
    verify_checkpoint,
)
from llm_modules.settings import DataSettings, ModelSettings, Settings, TrainingSettings
from llm_modules.shapes import choices_of
from llm_modules.source import Source, SourceLike
from llm_modules.store.training import StoreCollator, store_for
from llm_modules.tasks import get_task
from llm_modules.tasks.variations import varied
from llm_modules.trainer import CombinedTrainer, StopOnInterrupt, training_batches

MAX_KNOWLEDGE_BYTES = 2 * 2**30  # knowledge of a larger training set is read in every step instead of kept


@dataclass
class TrainingData:
    """Encoded examples, split, and which of their tokens carry loss."""

    training: list[Example]
    validation: list[Example]
    loss_on: LossOn = "response"

    def _labels(self, example: Example) -> list[int]:
        return example.response_ids if self.loss_on == "response" else example.input_ids

    @property
    def trained_words(self) -> Tensor:
        """`[n]` token ids that training may ask for, unique and sorted."""
        return torch.tensor(sorted({word for example in self.training for word in self._labels(example)}))


def build_model(settings: ModelSettings, *, seed: int, tables_only: bool = False) -> CombinedModel:
    """A new pair, its random weights decided by the seed.

    Args:
        settings: Of the model.
        seed: Of its random weights.
        tables_only: Leave the source's body out, where what it says is kept elsewhere (not for a `pretrained` pair).
    """
    set_seed(seed)
    if settings.pretrained is not None:
        elsewhere = settings.source if "source" in settings.model_fields_set else None
        dtype = getattr(torch, settings.source_dtype)
        return CombinedModel.from_pretrained(settings.pretrained, source=elsewhere, source_dtype=dtype)
    source = load_source(settings, tables_only=tables_only)
    return CombinedModel.from_modules(source, settings.generator, **choices_of(settings))


def load_source(settings: ModelSettings, *, tables_only: bool = False) -> Source:
    """The source that settings name, held as they say; one that is loaded already is taken as it is.

    Raises:
        UserError: If they name none, or it cannot be loaded.
    """
    source: SourceLike | None = settings.source
    if source is None:
        raise UserError("model.source is null; a pair needs one: name it")
    how: dict[str, Any] = {
        "revision": settings.source_revision,
        "dtype": getattr(torch, settings.source_dtype),
        "quantization": settings.source_quantization,
    }
    tables = tables_only and isinstance(source, str)
    found = Source.load(str(source), tables_only=True, **how) if tables else Source.of(source, **how)
    if settings.source_fingerprint not in (None, found.fingerprint):
        raise UserError(
            f"the source {settings.source} has the fingerprint {found.fingerprint}, and model.source_fingerprint asks "
            f"for {settings.source_fingerprint}; bring the weights that were meant, or set it right"
        )
    return found


def load_data(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> TrainingData:
    """Read or generate, split by seed, encode, and leave out what is too long (printed).

    Raises:
        UserError: For data that cannot be used, or examples that stand in the training and in the validation file.
    """
    conversations = _conversations(settings, settings.train_file, num_examples=settings.num_examples)
    if settings.validation_file is not None:
        parts = conversations, _conversations(settings, settings.validation_file, num_examples=None)
    else:
        parts = split(conversations, settings.validation_fraction, settings.seed)
    if settings.variations:
        parts = [*parts[0], *varied(parts[0], seed=settings.seed, num=settings.variations)], parts[1]
    encoded: list[list[Example]] = []
    for name, part in zip(("training", "validation"), parts, strict=True):
        if not part:
            encoded.append([])
            continue
        examples, _ = prepare(
            part,
            tokenizer,
            max_length=settings.max_length,
            loss_on=settings.loss_on,
            vocab_size=vocab_size,
            cut_to=settings.cut_to,
            report=partial(print, f"{name}:"),
        )
        encoded.append(examples)
    if settings.validation_file is not None:
        refuse_shared_examples(encoded[0], encoded[1])
    return TrainingData(encoded[0], encoded[1], settings.loss_on)


def _conversations(settings: DataSettings, file: str | None, *, num_examples: int | None) -> list[Conversation]:
    """What the task makes or reads, or what stands in the file."""
    if settings.task is not None:
        task = get_task(settings.task, data=file)
        return [problem.messages() for problem in task.train(num_examples, seed=settings.seed)]
    conversations = read_conversations(str(file))
    if num_examples is not None and num_examples < len(conversations):
        conversations, _ = split(conversations, 1 - num_examples / len(conversations), settings.seed)
    return conversations


def fit(
    model: Any,
    data: TrainingData,
    settings: TrainingSettings,
    *,
    tokenizer: PreTrainedTokenizerBase,
) -> CombinedTrainer:
    """Train any model that answers the pair's calls; returns the Trainer, whose `state` holds the losses.

    Raises:
        UserError: If `bidirectional` is trained without being asked for by name, or a checkpoint cannot be used.
    """
    config = model.config
    if getattr(config, "visibility", None) == "bidirectional" and not settings.allow_leak:
        raise UserError(
            "visibility='bidirectional' shows the model the tokens it must predict, so its losses mean nothing; use "
            "'causal' or 'prompt', or set training.allow_leak=true to reproduce the paper"
        )
    if settings.features_dtype is not None and settings.features in ("memory", "online"):
        raise UserError(
            f"training.features_dtype={settings.features_dtype} goes with a store, and training.features is "
            f"{settings.features}; set features to auto or to a store's folder, or leave features_dtype out"
        )
    for example in [*data.training, *data.validation]:
        model.check_room(len(example.prompt_ids), len(example.response_ids))
    checkpoints = settings.output_dir / CHECKPOINTS
    last = last_checkpoint(checkpoints) if settings.resume else None
    if last is not None:
        verify_checkpoint(last)
    if settings.resume is True and last is None:
        raise UserError(f"training.resume=true, but {checkpoints} holds no checkpoint; use training.resume=auto")
    check_launch(settings)
    agree({"newest checkpoint": last and last.name})
    arguments = _arguments(settings, data, checkpoints)
    model.to(arguments.device)  # before the source reads; it follows
    collate: Callable = Collator(padding_id(tokenizer, vocab_size=config.vocab_size), data.loss_on)
    if isinstance(model, CombinedModel) and settings.features == "memory":
        data = keep_knowledge(model, data)
    elif isinstance(model, CombinedModel) and settings.features != "online":
        examples = [*data.training, *data.validation]
        store = store_for(model, examples, tokenizer, features=settings.features, dtype=settings.features_dtype)
        collate = StoreCollator(collate, store, config.visibility)
    callbacks: list[TrainerCallback] = [interrupt := StopOnInterrupt()]
    if settings.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience, settings.early_stopping_min_delta))
    trainer = CombinedTrainer(
        settings=settings,
        trained_words=data.trained_words if settings.sampled_words is not None else None,
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=data.training,
        eval_dataset=data.validation or None,
        callbacks=callbacks,
    )
    if process_index():
        torch.manual_seed(settings.seed + process_index())  # dropout is drawn anew for each
    if last is not None and trainer.restore_finished(last, total_steps=_num_steps(settings, data)):
        print(f"{last} is the end of this run; nothing is left to train")
        trainer.interrupted = False
        return trainer
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        interrupt.listen_no_longer()
    trainer.interrupted = interrupt.interrupted
    return trainer


def keep_knowledge(model: CombinedModel, data: TrainingData) -> TrainingData:
    """Let the source read the data once, if what it says fits in memory; else it reads in every step."""
    needed = knowledge_bytes(model, [*data.training, *data.validation])
    if needed > MAX_KNOWLEDGE_BYTES:
        print(
            f"knowledge would take {needed / 2**30:.1f} GiB of memory: the source reads in every step instead; "
            "training.features=auto reads once, onto the disk"
        )
        return data
    training = with_knowledge(model, data.training, label="source reads training data")
    validation = with_knowledge(model, data.validation, label="source reads validation data")
    return replace(data, training=training, validation=validation)


def check_launch(settings: TrainingSettings) -> None:
    """Refuse what several processes cannot do.

    Raises:
        UserError: If a batch is too small to share, or the launcher asks for a way of sharding that is not ours.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != num_processes():
        raise UserError(
            f"WORLD_SIZE={launched} says that {launched} processes train together, and MASTER_ADDR does not say where; "
            "start them with torchrun or accelerate launch, or unset it"
        )
    if settings.tokens_per_batch is None and settings.batch_size < num_processes():
        raise UserError(
            f"training.batch_size={settings.batch_size} gives {num_processes()} processes less than an example each; "
            f"start at most {settings.batch_size}, or set training.batch_size to {num_processes()} or more (and fewer "
            "gradient_accumulation_steps, to update as often)"
        )
    for plugin in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() == "true":
            raise UserError(
                f"the launcher's configuration turns {plugin} on, whose checkpoints only the same number of processes "
                "could resume; take it out there (launch/accelerate/ has examples) and set training.sharding=fsdp2"
            )


def train(settings: Settings, *, command: list[str] | None = None) -> Path:
    """All of `llm-modules train`: data, model, training, loss picture, saved model; by one process or by several.

    Args:
        settings: Of the run.
        command: What the user typed, to print how to resume; left out, whoever called says it.

    Returns:
        Folder of the trained model, or of the last checkpoint if the run was interrupted.

    Raises:
        UserError: For anything in the settings or the data that cannot be used, or if other processes are lost.
    """
    with together(timeout_s=settings.training.timeout_s), ExitStack() as held:
        agree(facts(settings))
        check_launch(settings.training)
        first_does(partial(held.enter_context, claimed(settings)))
        return _train(settings, command=command)


def facts(settings: Settings) -> dict[str, Any]:
    """What all processes must start with alike."""
    chosen = settings.model_dump(mode="json")
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {f"{section}.{key}": value for section, keys in chosen.items() for key, value in keys.items()} | versions


def _train(settings: Settings, *, command: list[str] | None) -> Path:
    output = settings.training.output_dir
    print(f"seed {settings.training.seed}, data seed {settings.data.seed}")
    model = model_to_train(settings)
    model.tokenizer = tokenizer = with_template(model.tokenizer, settings.data.template)
    data = load_data(settings.data, tokenizer, vocab_size=model.config.vocab_size)
    digests = {"training": examples_digest(data.training), "validation": examples_digest(data.validation)}
    agree({f"{name} data": digest for name, digest in digests.items()})
    print(f"training: {batches_line(settings.training, data)}")
    if num_processes() > 1:
        print(f"{num_processes()} processes share every batch")
    first_does(partial(refuse_other_examples, output, digests))
    frozen = "; the source's stay frozen" if isinstance(model, CombinedModel) else " of a generator without a source"
    print(f"training {model.num_parameters():,} parameters{frozen}")
    trainer = fit(model, data, settings.training, tokenizer=tokenizer)
    name = "pair" if isinstance(model, CombinedModel) else "generator"
    if is_first():
        save_figure(loss_figure({name: trainer.state.log_history}), output / "loss.png")
    if trainer.interrupted:
        if command is not None:
            again = [part for part in command if not part.startswith("training.resume=")]
            print(f"interrupted; the same command goes on: {shlex.join(again)}")
        return last_checkpoint(output / CHECKPOINTS) or output
    trainer.save_trained(output / MODEL)
    if is_first():
        remember_prompts(output / MODEL, data.training)
    print(f"saved {output / MODEL}; losses: {output / 'loss.png'}")
    return output / MODEL


def model_to_train(settings: Settings, *, reads: bool = False) -> CombinedModel | GeneratorAlone:
    """A pair, or a generator alone where there is no source, with the tokenizer that goes with it.

    A pair that trains from a store, named by its folder or URL, has its source without the body, unless it `reads`.
    """
    chosen = settings.model
    if chosen.source is None:
        if not isinstance(chosen.generator, str):
            raise UserError(
                "model.source is null, so the generator needs a tokenizer of its own; name a folder or hub id as "
                "model.generator"
            )
        set_seed(settings.training.seed)
        return GeneratorAlone(*load_causal_lm(chosen.generator))
    stored = settings.training.features not in ("memory", "online", "auto")
    model = build_model(chosen, seed=settings.training.seed, tables_only=stored and not reads)
    model.tokenizer = model.tokenizer or model.source.tokenizer
    if model.tokenizer is None:
        raise UserError(f"the source {chosen.source!r} has no tokenizer beside its weights; add one")
    return model


def batches_line(settings: TrainingSettings, data: TrainingData) -> str:
    """How many batches the first epoch has, how large they are, and how much of them is padding."""
    lengths, budget = [len(example) for example in data.training], settings.tokens_per_batch
    batches = in_batches(training_batches(data.training, settings), batch_size=settings.batch_size)
    held = f"{settings.batch_size} examples" if budget is None else f"at most {budget:,} tokens"
    line = f"{len(batches):,} batches of {held} an epoch, padding {padding_share(lengths, batches):.1%}"
    alone = 0 if budget is None else sum(length > budget for length in lengths)
    return f"{line}; {alone:,} longer than that, each a batch of its own" if alone else line


def _steps_per_epoch(settings: TrainingSettings, data: TrainingData) -> int:
    served = len(training_batches(data.training, settings))  # batches, or examples that still have to share some
    per_batch = settings.batch_size if settings.tokens_per_batch is None else 1
    return math.ceil(served / per_batch / settings.gradient_accumulation_steps)


def _num_steps(settings: TrainingSettings, data: TrainingData) -> int:
    return settings.max_steps or math.ceil(_steps_per_epoch(settings, data) * settings.num_epochs)


def _arguments(settings: TrainingSettings, data: TrainingData, checkpoints: Path) -> TrainingArguments:
    steps_per_epoch, total = _steps_per_epoch(settings, data), _num_steps(settings, data)
    evaluates = bool(data.validation)
    eval_steps = min(settings.eval_steps or steps_per_epoch, total)
    on_cuda = torch.cuda.is_available()
    bf16 = settings.precision == "bfloat16" or (
        settings.precision == "auto" and on_cuda and torch.cuda.is_bf16_supported()
    )
    stops_early = settings.early_stopping_patience is not None
    if settings.tensorboard and not is_tensorboard_available():
        raise UserError("training.tensorboard=true needs tensorboard; pip install tensorboard, or leave it out")
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.num_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=math.ceil(settings.batch_size / num_processes()),
        per_device_eval_batch_size=math.ceil(settings.batch_size / num_processes()),
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate_bridge,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type=settings.lr_scheduler,
        max_grad_norm=settings.max_grad_norm,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),  # said aloud, bfloat16 is allowed there
        activation_checkpointing=settings.gradient_checkpointing,
        seed=settings.seed,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps if stops_early else min(settings.save_steps or steps_per_epoch, total),
        load_best_model_at_end=stops_early,
        restore_callback_states_from_checkpoint=True,  # early stopping counts on
        metric_for_best_model="loss",
        greater_is_better=False,
        prediction_loss_only=True,
        logging_steps=max(1, min(50, total // 20)),
        report_to=["tensorboard"] if settings.tensorboard else [],
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=on_cuda,
        ddp_find_unused_parameters=False,  # there are none: contract 4
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process has one; without a launcher the Trainer would take them all
    return arguments
