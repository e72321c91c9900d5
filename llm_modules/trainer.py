"""transformers' Trainer, told what a pair needs: two learning rates, knowledge, and a Ctrl-C that loses nothing."""

import shutil
import signal
import sys
import threading
from collections.abc import Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput

from llm_modules.checksums import seal
from llm_modules.data.batches import LengthGroupedBatches, Share, TokenBudgetBatches
from llm_modules.errors import UserError
from llm_modules.files import HALF_WRITTEN, told_if_unwritable
from llm_modules.fingerprint import COMBINED_CHOICES, LATER_CHOICES
from llm_modules.knowledge import Knowledge
from llm_modules.loss import IGNORED, LossVocabulary
from llm_modules.modeling import CombinedModel
from llm_modules.optimizer import build_optimizer
from llm_modules.processes import in_any, is_first, num_processes, process_index, summed
from llm_modules.run_folder import remove_older, verify_checkpoint
from llm_modules.settings import TrainingSettings
from llm_modules.sharding import is_sharded, keep_whole_, load_whole_, shard_, whole_state
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

    Several processes share every batch: what is learned does not depend on how many there are.

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
            optimizer = build_optimizer(model, self.settings, decayed=decayed, **kwargs)
            if is_sharded(model):
                keep_whole_(optimizer)
            self.optimizer = optimizer
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss, over the sampled vocabulary while training."""
        inputs = dict(inputs)
        if "knowledge_states" in inputs:
            inputs["knowledge"] = Knowledge(inputs.pop("knowledge_states"), inputs.pop("knowledge_mask"))
        stands_in = num_processes() > 1 and not bool((inputs["labels"] != IGNORED).any())
        if stands_in:  # one row: its last token, which every wiring can predict
            last = (0, inputs["attention_mask"].sum() - 1)
            inputs["labels"] = torch.full_like(inputs["labels"], IGNORED)
            inputs["labels"][last] = inputs["input_ids"][last]
        elif model.training and self.settings.sampled_words is not None:
            # drawn from seed and step, so that a resumed run draws the same
            generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
            inputs["loss_vocabulary"] = LossVocabulary.sample(
                self.trained_words,
                num_random=self.settings.sampled_words,
                vocab_size=self.model.config.vocab_size,
                generator=generator,
            )
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss = outputs.loss * 0 if stands_in else outputs.loss
        if model.training and num_items_in_batch is not None:
            loss = loss * num_processes()  # it was divided by all labels, and the gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """The mean loss over all labels of the validation examples, which the processes share."""
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        total = torch.zeros(2, dtype=torch.float64)  # loss, labels
        for batch in dataloader:
            labels = (batch["labels"][:, 1:] != IGNORED).sum()
            with torch.no_grad():
                loss = self.compute_loss(self.model, self._prepare_inputs(batch), num_items_in_batch=1)
            total += torch.stack([loss.cpu().double(), labels.double()])
            control = self.control  # type: ignore[has-type]
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, control)
        loss, labels = summed(total).tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / labels}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def save_trained(self, folder: Path) -> None:
        """Write the model's folder, by the first process; all of them must ask."""
        state = whole_state(self.model) if is_sharded(self.model) else None
        if is_first():
            self.model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))

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
        """This process's part of the training batches: of `batch_size` examples or of `tokens_per_batch`."""
        return self._shared(self.train_dataset, training_batches(self.train_dataset, self.settings))

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Its part of all validation examples in batches of the same size or budget, the same in every evaluation."""
        examples: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        order: Any = range(len(examples))
        if self.settings.tokens_per_batch is not None:
            order = training_batches(examples, self.settings.model_copy(update={"epoch_fraction": 1.0}))
        return self._shared(examples, order)

    def _shared(self, examples: Any, order: Any) -> DataLoader:
        share = Share(
            order, batch_size=self.settings.batch_size, process=process_index(), num_processes=num_processes()
        )
        pin_memory = self.args.dataloader_pin_memory
        return DataLoader(examples, batch_sampler=share, collate_fn=self._collate, pin_memory=pin_memory)

    def _collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        if examples:
            return self.data_collator(examples)
        # none of this batch is this process's: it takes part in the step all the same, and adds nothing
        batch: dict[str, Tensor] = self.data_collator([self.train_dataset[0]])
        batch["labels"].fill_(IGNORED)
        return batch

    # -- what is divided among the processes (sharding.py) -----------------------------------------------------------

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.settings.sharding == "fsdp2" and num_processes() > 1:
            shard_(self.model)  # now: a checkpoint was loaded, and the optimizer is not yet made
            self.is_distributed_loading_by_transformers = True  # so that nothing wraps it once more
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Nothing: `shard_` has seen to them, on gloo too."""

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager:
        """Nothing is put off while gradients accumulate: whole ones would take the memory that sharding saves."""
        return nullcontext()

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _save(self, output_dir=None, state_dict=None) -> None:
        if is_sharded(self.model):
            state_dict = whole_state(self.model)
        if self.args.should_save:
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if is_sharded(self.model) and not self.args.should_save:
            self.optimizer.state_dict()  # its parts go to the first process
        super()._save_optimizer_and_scheduler(output_dir)

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
        if is_sharded(self.model):
            load_whole_(self.model, load_file(best / "model.safetensors"))
        else:
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
        """Save and stop, if asked; all processes after the same step."""
        self.interrupted = in_any(self.interrupted)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self._previous)
        if is_first():
            print("\nstopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)
