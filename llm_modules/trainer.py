"""transformers' Trainer, told what a pair needs: two learning rates, knowledge, and a Ctrl-C that loses nothing."""

import shutil
import signal
import sys
import threading
from collections.abc import Sequence, Sized
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from llm_modules.checksums import seal
from llm_modules.data.batches import LengthGroupedBatches, TokenBudgetBatches
from llm_modules.errors import UserError
from llm_modules.files import HALF_WRITTEN, told_if_unwritable
from llm_modules.fingerprint import COMBINED_CHOICES, LATER_CHOICES
from llm_modules.knowledge import Knowledge
from llm_modules.loss import LossVocabulary
from llm_modules.modeling import CombinedModel
from llm_modules.optimizer import build_optimizer
from llm_modules.run_folder import remove_older, verify_checkpoint
from llm_modules.settings import TrainingSettings
from llm_modules.storage import verify_model


def training_batches(
    examples: Sequence[Sized], settings: TrainingSettings
) -> LengthGroupedBatches | TokenBudgetBatches:
    """The order of training: of batches with `tokens_per_batch`, else of examples that share one `batch_size` each."""
    lengths, seed, fraction = [len(example) for example in examples], settings.seed, settings.epoch_fraction
    if settings.tokens_per_batch is None:
        return LengthGroupedBatches(lengths, batch_size=settings.batch_size, seed=seed, fraction=fraction)
    return TokenBudgetBatches(lengths, tokens_per_batch=settings.tokens_per_batch, seed=seed, fraction=fraction)


class CombinedTrainer(Trainer):
    """A Trainer with two learning rates, knowledge read before, and a loss over part of the vocabulary if asked.

    Args:
        settings: Learning rates and loss vocabulary.
        trained_words: `[n]` token ids that occur in the training labels; needed for `sampled_words`.
        **kwargs: As for `Trainer`.
    """

    def __init__(self, *, settings: TrainingSettings, trained_words: Any = None, **kwargs):
        super().__init__(**kwargs)
        self._loss_shifts_labels = True  # so the first token of a row is not counted as a label
        self.settings = settings
        self.trained_words = trained_words
        self._writes_into: Path | None = None  # where a checkpoint becomes whole

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """An optimizer with a learning rate for the generator and one for all that joins it to the source."""
        if self.optimizer is None:  # type: ignore[has-type]
            model = self.model if model is None else model
            _, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            decayed = set(self.get_decay_parameter_names(model))
            self.optimizer = build_optimizer(model, self.settings, decayed=decayed, **kwargs)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss, over the sampled vocabulary while training."""
        inputs = dict(inputs)
        if "knowledge_states" in inputs:
            inputs["knowledge"] = Knowledge(inputs.pop("knowledge_states"), inputs.pop("knowledge_mask"))
        if model.training and self.settings.sampled_words is not None:
            # drawn from seed and step, so that a resumed run draws the same
            generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
            inputs["loss_vocabulary"] = LossVocabulary.sample(
                self.trained_words,
                num_random=self.settings.sampled_words,
                vocab_size=self.model.config.vocab_size,
                generator=generator,
            )
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def restore_finished(self, checkpoint: Path, *, total_steps: int) -> bool:
        """Load a checkpoint if all steps are behind it; transformers would take one more."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < total_steps:
            return False
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            checkpoint = checkpoint.with_name(Path(state.best_model_checkpoint).name)
        self._load_from_checkpoint(str(checkpoint))
        return True

    def get_train_dataloader(self) -> DataLoader:
        """Training batches: of `batch_size` examples or of `tokens_per_batch`."""
        if self.settings.tokens_per_batch is None:
            return super().get_train_dataloader()
        return self._by_tokens(self.train_dataset, self.settings)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """All validation examples in batches of the same size or budget, the same in every evaluation."""
        if self.settings.tokens_per_batch is None:
            return super().get_eval_dataloader(eval_dataset)
        examples = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._by_tokens(examples, self.settings.model_copy(update={"epoch_fraction": 1.0}))

    def _by_tokens(self, examples: Any, settings: TrainingSettings) -> DataLoader:
        order: Any = training_batches(examples, settings)
        pin_memory = self.args.dataloader_pin_memory
        return self.accelerator.prepare(
            DataLoader(examples, batch_sampler=order, collate_fn=self.data_collator, pin_memory=pin_memory)
        )

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return training_batches(self.train_dataset if train_dataset is None else train_dataset, self.settings)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Beside, then renamed when all of it is there; older ones go only after it has been read back."""
        run, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        beside = run / f".{name}{HALF_WRITTEN}"  # the same for all processes
        if self.args.should_save:
            shutil.rmtree(beside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._writes_into = beside
        try:
            with told_if_unwritable(run):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self._finish_checkpoint(beside / name, run / name)
        finally:
            self._writes_into = None
            if self.args.should_save:
                shutil.rmtree(beside, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _finish_checkpoint(self, written: Path, final: Path) -> None:
        best = final.with_name(f"checkpoint-{self.state.best_global_step}")
        if best == final or best.is_dir():  # transformers has looked for it among what is being written
            self.state.best_model_checkpoint = str(best)
        self.state.save_to_json(str(written / TRAINER_STATE_NAME))
        (written / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nobody reads
        seal(written)
        if final.exists():  # damaged, or of another course of this run
            final.rename(written.parent / "replaced")
        written.rename(final)
        verify_checkpoint(final)
        best_name = self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint).name
        remove_older(final, keep=self.settings.save_total_limit, best=best_name)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._writes_into is None else str(self._writes_into)

    def _load_best_model(self) -> None:
        best = Path(self.args.output_dir) / Path(str(self.state.best_model_checkpoint)).name  # the run may have moved
        self.state.best_model_checkpoint = str(best)
        verify_checkpoint(best)
        super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if isinstance(self.model, CombinedModel):
            saved = type(self.model.config).from_pretrained(resume_from_checkpoint)
            verify_model(Path(resume_from_checkpoint), saved)
            before, now = saved.to_dict(), self.model.config.to_dict()
            shapes = ("num_bridge_layers", "d_adapter", "pre_projection")
            for name in (*COMBINED_CHOICES, *LATER_CHOICES, *shapes, "gate_start"):
                if before[name] != now[name]:  # loading takes what fits and would be silent about the rest
                    raise UserError(
                        f"{resume_from_checkpoint} was trained with {name}={before[name]}, now it is {now[name]}; "
                        "resume with the settings that the run began with, or choose another output_dir"
                    )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (RuntimeError, ValueError, EOFError, OSError, UnpicklingError) as error:
            raise UserError(
                f"the optimizer in {checkpoint} cannot be read ({error}); remove this checkpoint to resume from the "
                "one before"
            ) from error


class StopOnInterrupt(TrainerCallback):
    """On Ctrl-C finish the step, keep a checkpoint and stop; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.interrupted = False
        self._previous = signal.getsignal(signal.SIGINT)

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Listen."""
        if threading.current_thread() is threading.main_thread():  # no other may
            signal.signal(signal.SIGINT, self._interrupt)

    def listen_no_longer(self) -> None:
        """Leave Ctrl-C to whom it was before."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous)

    def on_step_end(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Save and stop, if asked."""
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self._previous)
        print("\nstopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)
