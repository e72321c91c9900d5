"""Training: the right rates, exact accumulation, exact resumption, and nothing lost on the way."""

import itertools
import json
import math
import random
import signal
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from llm_modules import CombinedModel, UserError, trainer, training
from llm_modules.baselines import GeneratorAlone
from llm_modules.checksums import SUMS
from llm_modules.data.batches import in_batches
from llm_modules.data.dataset import Collator
from llm_modules.data.templates import Example, encode_prompt, with_template
from llm_modules.loading import load_trained
from llm_modules.run_folder import claimed, examples_digest, last_checkpoint, refuse_other_examples
from llm_modules.settings import DataSettings, ModelSettings, Settings, TrainingSettings, load_settings
from llm_modules.trainer import CombinedTrainer, training_batches
from llm_modules.training import (
    TrainingData,
    fit,
    keep_knowledge,
    load_data,
    train,
)
from tests.conftest import VOCAB, randomise_, tiny_generator_config, tiny_pair, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def examples(number, seed=0, longest=9):
    """Random examples of unequal lengths."""
    draw = random.Random(seed)
    words = lambda: [draw.randrange(3, VOCAB) for _ in range(draw.randint(2, longest))]  # noqa: E731
    return [Example(words(), words()) for _ in range(number)]


def data_of(number=10, validation=4, loss_on="response"):
    return TrainingData(examples(number), examples(validation, seed=1), loss_on)


def settings_of(folder, **changes):
    fields = {
        "output_dir": folder,
        "max_steps": 4,
        "batch_size": 2,
        "learning_rate_bridge": 3e-3,
        "learning_rate_generator": 1e-3,
        "warmup_steps": 0,
    }
    fields |= changes
    if "num_epochs" in changes:
        fields.pop("max_steps")
    return TrainingSettings(**fields)


def dropping_pair(seed=0, **choices):
    """A pair with dropout in the bridge and in the generator, in eval mode until it is trained."""
    generator = tiny_generator_config(embed_dropout=0.2, resid_dropout=0.2, attention_dropout=0.2)
    return tiny_pair(seed, generator=generator, dropout=0.2, **choices)


def tiny_llama_config():
    return LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        attention_dropout=0.1,
    )


def losses_of(trainer, key="loss"):
    return {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}


def weights_of(model):
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def write_lines(path, conversations):
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations))
    return path


def conversations(number=12):
    return [
        [{"role": "user", "content": f"{a} + {b} ?"}, {"role": "assistant", "content": f"{a} + {b} = {(a + b) % 10}"}]
        for a, b in itertools.islice(itertools.product(range(5), range(5)), number)
    ]


def run_settings(folder, source, train_file, **changes):
    """Settings of a whole run on a tiny stored source; changes as `section={...}`."""
    generator = tiny_generator_config().to_diff_dict() | {"model_type": "gpt_neo"}
    sections = {
        "model": {"source": str(source), "generator": generator, "num_heads": 2, "d_adapter": 10},
        "data": {"train_file": str(train_file), "max_length": 64},
        "training": {"output_dir": str(folder), "max_steps": 3, "batch_size": 2},
    }
    return Settings(**{name: fields | changes.get(name, {}) for name, fields in sections.items()})


# -- learning rates and the update ---------------------------------------------------------------------------------


def trainer_of(model, folder, data=None, **changes):
    """A Trainer as `fit` makes it, not yet run."""
    data = data or data_of()
    settings = settings_of(folder, **changes)
    return CombinedTrainer(
        settings=settings,
        model=model,
        args=training._arguments(settings, data, folder),
        train_dataset=data.training,
        eval_dataset=data.validation,
        data_collator=Collator(0),
    )


def test_bridge_and_generator_have_their_own_rates_and_norms_no_decay(tmp_path):
    model = tiny_pair(visibility="causal", head="new")
    optimizer = trainer_of(model, tmp_path, weight_decay=0.1).create_optimizer()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["lr"] == (1e-3 if name.startswith("generator.") else 3e-3), name
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0), name  # biases and norms are vectors
    assert sorted(seen) == sorted(names.values())


def test_both_rates_warm_up_and_decay(tmp_path):
    trainer = trainer_of(tiny_pair(), tmp_path, max_steps=10, warmup_steps=4, lr_scheduler="linear")
    trainer.create_optimizer_and_scheduler(10)
    rates = []
    for _ in range(11):
        rates.append(sorted({group["lr"] for group in trainer.optimizer.param_groups}))
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    generator, bridge = zip(*[rate if len(rate) == 2 else rate * 2 for rate in rates], strict=True)
    shares = [0, 1 / 4, 2 / 4, 3 / 4, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    assert generator == pytest.approx([1e-3 * share for share in shares])
    assert bridge == pytest.approx([3e-3 * share for share in shares])


@pytest.mark.parametrize("sampled_words", [None, 5])
@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_accumulated_gradients_update_as_the_big_batch_does(tmp_path, sampled_words, loss_on, monkeypatch):
    # plain descent: AdamW makes full steps of the rounding errors in gradients that are zero
    monkeypatch.setattr(trainer, "build_optimizer", lambda model, *_, **__: torch.optim.SGD(model.parameters(), lr=0.1))
    updated = []
    for name, batch_size, accumulated in (("whole", 6, 1), ("parts", 2, 3)):
        model = tiny_pair(generator=tiny_generator_config(embed_dropout=0.0, resid_dropout=0.0, attention_dropout=0.0))
        data = TrainingData(examples(6), [], loss_on)  # unequal numbers of labels
        settings = settings_of(
            tmp_path / name,
            max_steps=2,
            batch_size=batch_size,
            gradient_accumulation_steps=accumulated,
            sampled_words=sampled_words,
        )
        fit(model, data, settings, tokenizer=TOKENIZER)
        updated.append(weights_of(model))
    assert not torch.equal(updated[0]["head.weight"], tiny_pair().head.weight)
    for name, whole in updated[0].items():
        torch.testing.assert_close(updated[1][name], whole, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_logged_training_loss_is_the_mean_over_labels(tmp_path, loss_on):
    data = TrainingData(examples(4), examples(4), loss_on)
    settings = settings_of(tmp_path, max_steps=1, batch_size=4, learning_rate_bridge=1e-9, learning_rate_generator=1e-9)
    generator = tiny_generator_config(embed_dropout=0.0, resid_dropout=0.0, attention_dropout=0.0)
    trainer = fit(tiny_pair(generator=generator), data, settings, tokenizer=TOKENIZER)
    assert losses_of(trainer)[1] == pytest.approx(losses_of(trainer, "eval_loss")[1], abs=1e-4)


def test_process_without_an_example_takes_part_and_adds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "num_processes", lambda: 2)
    model = tiny_pair(generator_window=4).train()
    data = TrainingData([Example(list(range(3, 15)), [5, 6])], [])  # a prompt that does not enter the generator whole
    stand_in = trainer_of(model, tmp_path, data=data)
    loss = stand_in.compute_loss(model, stand_in._prepare_inputs(stand_in._collate([])), num_items_in_batch=3)
    loss.backward()
    assert loss == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 3}, {"tokens_per_batch": 30}])
def test_validation_loss_is_the_mean_over_labels_however_they_are_batched(tmp_path, changes):
    data = data_of(4, 7)
    still = {"max_steps": 1, "learning_rate_bridge": 1e-9, "learning_rate_generator": 1e-9}
    trainer = fit(tiny_pair(), data, settings_of(tmp_path, **(still | changes)), tokenizer=TOKENIZER)
    model = trainer.model.eval()
    batch = {name: part.to(model.device) for name, part in Collator(0)(data.validation).items()}
    with torch.no_grad():
        whole = model(**{name: part for name, part in batch.items() if not name.startswith("knowledge")}).loss
    assert losses_of(trainer, "eval_loss")[1] == pytest.approx(whole.item(), abs=1e-5)


# -- the loss over part of the vocabulary ----------------------------------------------------------------------------


def test_validation_uses_the_full_vocabulary(tmp_path):
    generator = tiny_generator_config(embed_dropout=0.0, resid_dropout=0.0, attention_dropout=0.0)
    found = {}
    for sampled_words in (None, 0):  # 0: the training loss is over the trained words alone
        model = tiny_pair(generator=generator)
        settings = settings_of(
            tmp_path / str(sampled_words),
            max_steps=1,
            learning_rate_bridge=1e-9,
            learning_rate_generator=1e-9,
            sampled_words=sampled_words,
        )
        # few words to train on: 0 then differs from all; other words to validate on
        data = TrainingData([Example([5, 6], [7, 8])] * 2, examples(4, seed=1))
        trainer = fit(model, data, settings, tokenizer=TOKENIZER)
        found[sampled_words] = losses_of(trainer)[1], losses_of(trainer, "eval_loss")[1]
    assert found[0][0] < found[None][0] - 0.5
    assert found[0][1] == pytest.approx(found[None][1], abs=1e-5)


# -- knowledge read before -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_knowledge_read_before_gives_the_losses_of_reading_in_every_step(
    tmp_path, visibility, precision, monkeypatch, capsys
):
    found = []
    for limit in (training.MAX_KNOWLEDGE_BYTES, 0):
        monkeypatch.setattr(training, "MAX_KNOWLEDGE_BYTES", limit)
        model = dropping_pair(visibility=visibility, taps=[0, 2, -1])
        settings = settings_of(tmp_path / str(limit), max_steps=6, precision=precision)
        trainer = fit(model, data_of(), settings, tokenizer=TOKENIZER)
        assert (trainer.train_dataset[0].knowledge is None) == (limit == 0)
        found.append([*losses_of(trainer).values(), *losses_of(trainer, "eval_loss").values()])
    # a GPU's last bits depend on the batch, and a bfloat16 number may then be its neighbour
    tolerance = 5e-3 if precision == "bfloat16" and torch.cuda.is_available() else 1e-4
    assert found[0] == pytest.approx(found[1], rel=tolerance)
    assert "the source reads in every step instead" in capsys.readouterr().out


def test_knowledge_that_fits_is_kept_and_counts_bytes():
    model, data = tiny_pair(taps=[0, -1]), data_of(3, 2)
    kept = keep_knowledge(model, data)
    parts = [*kept.training, *kept.validation]
    assert training.knowledge_bytes(model, parts) == sum(part.knowledge.numel() * 4 for part in parts)


# -- stopping and going on -------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


def kill_at(monkeypatch, step):
    """Let training die in the step after `step` updates."""
    whole = CombinedTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KilledError
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(CombinedTrainer, "training_step", training_step)


RESUMED = {
    "prompt": ({"visibility": "prompt", "taps": [0, -1]}, {"sampled_words": 5}),
    "causal": ({"visibility": "causal"}, {"gradient_accumulation_steps": 2}),
    "muon": ({"visibility": "prompt", "head": "new"}, {"optimizer": "muon"}),
    "budget": ({"visibility": "prompt"}, {"tokens_per_batch": 40, "epoch_fraction": 0.8}),
    "checkpointed": ({"visibility": "causal"}, {"gradient_checkpointing": True}),
}


@pytest.mark.parametrize("choice", RESUMED)
def test_resumed_run_ends_with_the_very_weights_of_an_uninterrupted_one(tmp_path, choice, monkeypatch):
    choices, changes = RESUMED[choice]
    # epochs of 5 or 3 updates: the kill comes in the middle of the third or fourth, after 3 updates that are lost
    fields = {"max_steps": 14, "save_steps": 4, "eval_steps": 4} | changes
    straight = dropping_pair(**choices)
    whole = fit(straight, data_of(), settings_of(tmp_path / "whole", **fields), tokenizer=TOKENIZER)
    with monkeypatch.context() as patch:
        kill_at(patch, 11)
        with pytest.raises(KilledError):
            fit(dropping_pair(**choices), data_of(), settings_of(tmp_path / "cut", **fields), tokenizer=TOKENIZER)
    resumed = randomise_(dropping_pair(**choices))  # other weights: all must come from the checkpoint
    settings = settings_of(tmp_path / "cut", resume=True, **fields)
    torch.manual_seed(99)
    rest = fit(resumed, data_of(), settings, tokenizer=TOKENIZER)
    assert losses_of(rest) == losses_of(whole)
    assert losses_of(rest, "eval_loss") == losses_of(whole, "eval_loss")
    assert losses_of(rest, "grad_norm") == losses_of(whole, "grad_norm")
    assert_same_weights(weights_of(resumed), weights_of(straight))


def test_half_written_checkpoint_is_passed_over(tmp_path, monkeypatch):
    settings = settings_of(tmp_path, max_steps=4, save_steps=2)
    fit(tiny_pair(), data_of(), settings, tokenizer=TOKENIZER)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "checkpoint-4" / "trainer_state.json").unlink()
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-2"
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_newest_checkpoint_is_found_by_number(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


def test_finished_run_can_be_resumed_and_does_nothing(tmp_path):
    model = tiny_pair()
    fit(model, data_of(), settings_of(tmp_path), tokenizer=TOKENIZER)
    again = randomise_(tiny_pair())
    trainer = fit(again, data_of(), settings_of(tmp_path, resume=True), tokenizer=TOKENIZER)
    assert trainer.state.global_step == 4
    assert_same_weights(weights_of(again), weights_of(model))


@pytest.mark.parametrize("damage", ["weights", "config", "optimizer"])
def test_damaged_checkpoint_is_refused_on_resumption(tmp_path, damage):
    fit(tiny_pair(), data_of(), settings_of(tmp_path), tokenizer=TOKENIZER)
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    if damage == "config":
        fields = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(fields | {"visibility": "causal"}))
    else:
        path = checkpoint / {"weights": "model.safetensors", "optimizer": "optimizer.pt"}[damage]
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        UserError, match="is not what was saved: .*remove this checkpoint and run the same again; the run"
    ):
        fit(tiny_pair(), data_of(), settings_of(tmp_path, resume=True, max_steps=8), tokenizer=TOKENIZER)
    (checkpoint / SUMS).unlink()  # as earlier versions wrote it
    message = {"weights": "cut off or damaged", "config": "changed or damaged", "optimizer": "remove this checkpoint"}
    with pytest.raises(UserError, match=message[damage]):
        fit(tiny_pair(), data_of(), settings_of(tmp_path, resume=True, max_steps=8), tokenizer=TOKENIZER)


def test_checkpoint_of_another_shape_is_refused_on_resumption(tmp_path):
    fit(tiny_pair(), data_of(), settings_of(tmp_path), tokenizer=TOKENIZER)
    with pytest.raises(UserError, match=r"was trained with num_bridge_layers=2, now it is 3; resume with the settings"):
        fit(tiny_pair(num_bridge_layers=3), data_of(), settings_of(tmp_path, resume=True), tokenizer=TOKENIZER)
    with pytest.raises(UserError, match=r"was trained with pre_projection=True, now it is False"):
        fit(tiny_pair(pre_projection=False), data_of(), settings_of(tmp_path, resume=True), tokenizer=TOKENIZER)
    moved = tiny_pair(placement="interleaved", num_bridge_layers=0)
    with pytest.raises(UserError, match=r"was trained with placement=front, now it is interleaved"):
        fit(moved, data_of(), settings_of(tmp_path, resume=True), tokenizer=TOKENIZER)


def test_resuming_without_a_checkpoint_is_refused_unless_auto(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint; use training.resume=auto"):
        fit(tiny_pair(), data_of(), settings_of(tmp_path, resume=True), tokenizer=TOKENIZER)
    trainer = fit(tiny_pair(), data_of(), settings_of(tmp_path, resume="auto"), tokenizer=TOKENIZER)
    assert trainer.state.global_step == 4


def constant_validation(monkeypatch):
    """Let the validation loss never improve."""
    whole = CombinedTrainer.evaluate

    def evaluate(self, *args, **kwargs):
        return whole(self, *args, **kwargs) | {"eval_loss": 3.0}

    monkeypatch.setattr(CombinedTrainer, "evaluate", evaluate)


def test_training_stops_early_and_keeps_the_best_weights(tmp_path, monkeypatch):
    constant_validation(monkeypatch)
    seen = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen[state.global_step] = weights_of(model)

    original = CombinedTrainer.__init__
    monkeypatch.setattr(
        CombinedTrainer,
        "__init__",
        lambda self, **kwargs: original(self, **kwargs | {"callbacks": [*kwargs["callbacks"], Keep()]}),
    )
    settings = settings_of(tmp_path, max_steps=40, eval_steps=2, early_stopping_patience=3, save_total_limit=1)
    model = tiny_pair()
    trainer = fit(model, data_of(), settings, tokenizer=TOKENIZER)
    assert trainer.state.global_step == 8  # the first evaluation is the best, three follow
    assert_same_weights(weights_of(model), seen[2])


def test_early_stopping_counts_on_after_a_resumption(tmp_path, monkeypatch):
    constant_validation(monkeypatch)
    fields = {"max_steps": 40, "eval_steps": 2, "early_stopping_patience": 3}
    with monkeypatch.context() as patch:
        kill_at(patch, 7)
        with pytest.raises(KilledError):
            fit(tiny_pair(), data_of(), settings_of(tmp_path, **fields), tokenizer=TOKENIZER)
    trainer = fit(tiny_pair(), data_of(), settings_of(tmp_path, resume=True, **fields), tokenizer=TOKENIZER)
    assert trainer.state.global_step == 8


def test_training_works_outside_the_main_thread(tmp_path):
    found = []
    run = lambda: found.append(fit(tiny_pair(), data_of(), settings_of(tmp_path), tokenizer=TOKENIZER))  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found[0].state.global_step == 4


def test_failed_training_leaves_ctrl_c_as_it_was(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    kill_at(monkeypatch, 1)
    with pytest.raises(KilledError):
        fit(tiny_pair(), data_of(), settings_of(tmp_path), tokenizer=TOKENIZER)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_resume(tmp_path, talking_source, monkeypatch, capsys):
    whole = CombinedTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return whole(self, *args, **kwargs)

    train_file = write_lines(tmp_path / "data.jsonl", conversations())
    settings = run_settings(tmp_path / "run", talking_source, train_file, training={"max_steps": 30})
    with monkeypatch.context() as patch:
        patch.setattr(CombinedTrainer, "training_step", training_step)
        stopped = train(settings, command=["llm-modules", "train", "my config.yaml", "training.resume=auto"])
    assert stopped == tmp_path / "run" / "checkpoints" / "checkpoint-3"
    assert "interrupted; the same command goes on: llm-modules train 'my config.yaml'" in capsys.readouterr().out
    CombinedModel.from_pretrained(stopped)  # a checkpoint is a model
    assert not (tmp_path / "run" / "model").exists()


# -- models that are trained -----------------------------------------------------------------------------------------


def test_bidirectional_is_refused_unless_asked_for_by_name(tmp_path):
    with pytest.warns(UserWarning, match="lets every position read"):
        model = tiny_pair(visibility="bidirectional", head="new")
    with pytest.raises(UserError, match=r"its losses mean nothing; .*set training.allow_leak=true"):
        fit(model, data_of(), settings_of(tmp_path), tokenizer=TOKENIZER)
    trainer = fit(model, data_of(), settings_of(tmp_path, allow_leak=True), tokenizer=TOKENIZER)
    assert trainer.state.global_step == 4


def test_loss_falls_in_training(tmp_path):
    model = randomise_(dropping_pair())
    data = TrainingData(examples(4), [])
    settings = settings_of(tmp_path, max_steps=60, learning_rate_bridge=1e-2, learning_rate_generator=1e-2)
    trainer = fit(model, data, settings, tokenizer=TOKENIZER)
    losses = list(losses_of(trainer).values())
    assert losses[-1] < losses[0] / 2


def test_share_of_an_epoch_trains_as_many_steps(tmp_path):
    trainer = fit(tiny_pair(), data_of(10), settings_of(tmp_path, num_epochs=1.4), tokenizer=TOKENIZER)
    assert trainer.state.global_step == 7


def test_part_of_the_data_makes_an_epoch(tmp_path):
    settings = settings_of(tmp_path, num_epochs=2, epoch_fraction=0.3)
    trainer = fit(tiny_pair(), data_of(20), settings, tokenizer=TOKENIZER)
    assert trainer.state.global_step == 2 * 3  # 6 of 20 examples, two at a time


def test_budget_of_tokens_bounds_batches_of_training_and_evaluation(tmp_path, monkeypatch):
    seen = {True: [], False: []}
    whole = CombinedTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen[model.training].append(tuple(inputs["input_ids"].shape))
        return whole(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CombinedTrainer, "compute_loss", compute_loss)
    data = data_of(20, validation=9)
    settings = settings_of(tmp_path, num_epochs=2, tokens_per_batch=50, gradient_accumulation_steps=2)
    trainer = fit(tiny_pair(), data, settings, tokenizer=TOKENIZER)
    served = in_batches(training_batches(data.training, settings), batch_size=0)
    assert [len(seen[True]), trainer.state.global_step] == [2 * len(served), 2 * math.ceil(len(served) / 2)]
    for is_training, number in ((True, 2 * 20), (False, 2 * 9)):
        assert sum(rows for rows, _ in seen[is_training]) == number
        assert all(rows * length <= 50 for rows, length in seen[is_training])
    assert len({rows for rows, _ in seen[True]}) > 1


def test_data_line_tells_batches_padding_and_what_is_longer_than_the_budget(tmp_path):
    data = TrainingData([Example([3] * 4, [5] * n) for n in (2, 4, 30)], [])
    assert training.batches_line(settings_of(tmp_path, tokens_per_batch=16), data) == (
        "2 batches of at most 16 tokens an epoch, padding 4.0%; 1 longer than that, each a batch of its own"
    )
    assert training.batches_line(settings_of(tmp_path, batch_size=3), data) == (
        "1 batches of 3 examples an epoch, padding 52.9%"
    )


# -- layers computed again -------------------------------------------------------------------------------------------


def kept_bytes(model, **inputs):
    """The loss, and what the forward keeps for the backward, parameters aside."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**inputs).loss
    return loss, sum(kept.values())


@pytest.mark.parametrize("placement", ["front", "interleaved"])
@pytest.mark.parametrize("visibility", ["prompt", "causal"])
@pytest.mark.parametrize("generator", [tiny_generator_config(), tiny_llama_config()], ids=["gpt_neo", "llama"])
def test_checkpointing_keeps_less_and_gives_the_same_loss_and_gradients(placement, visibility, generator):
    batch = Collator(0)(examples(3, longest=40))
    found = []
    for checkpointing in (False, True):
        choices = {"visibility": visibility, "generator": generator, "placement": placement, "dropout": 0.3}
        model = randomise_(tiny_pair(**choices)).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(7)
        loss, kept = kept_bytes(model, **batch)
        loss.backward()
        found.append((loss, kept, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (loss, kept, gradients), (again, less, recomputed) = found
    assert torch.equal(again, loss)
    for name, gradient in gradients.items():
        assert torch.equal(recomputed[name], gradient), name
    assert less < 0.7 * kept


def test_checkpointing_reaches_pairs_and_generators_alone(tmp_path):
    alone = GeneratorAlone(AutoModelForCausalLM.from_config(tiny_generator_config(vocab_size=VOCAB)))
    for name, model in (("pair", tiny_pair()), ("alone", alone)):
        settings = settings_of(tmp_path / name, gradient_checkpointing=True, max_steps=1)
        fit(model, data_of(), settings, tokenizer=TOKENIZER)
        switched = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
        assert len(switched) >= 2 and all(part.gradient_checkpointing for part in switched)


def test_example_beyond_the_positions_is_refused_before_anything_is_computed(tmp_path):
    model = tiny_pair(generator=tiny_generator_config(max_position_embeddings=16), visibility="causal")
    long = TrainingData([Example(list(range(3, 15)), [5] * 9)], [])
    with pytest.raises(UserError, match="21 tokens are more than the generator's 16 positions"):
        fit(model, long, settings_of(tmp_path), tokenizer=TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_one_example_in_a_larger_batch_trains(tmp_path):
    data = TrainingData(examples(1), [])
    trainer = fit(tiny_pair(), data, settings_of(tmp_path, batch_size=8, num_epochs=3), tokenizer=TOKENIZER)
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("choices", [{"visibility": "prompt", "head": "new"}, {"visibility": "causal"}])
def test_bfloat16_trains_with_weights_kept_in_float32(tmp_path, choices):
    found = {}
    for precision in ("float32", "bfloat16"):
        model = tiny_pair(**choices)
        settings = settings_of(tmp_path / precision, precision=precision, sampled_words=9)
        torch.manual_seed(0)
        found[precision] = list(losses_of(fit(model, data_of(), settings, tokenizer=TOKENIZER)).values())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.1)
    assert found["bfloat16"] != found["float32"]


def test_tensorboard_files_are_written_when_asked_for(tmp_path):
    pytest.importorskip("tensorboard")
    fit(tiny_pair(), data_of(), settings_of(tmp_path / "with", tensorboard=True), tokenizer=TOKENIZER)
    fit(tiny_pair(), data_of(), settings_of(tmp_path / "without"), tokenizer=TOKENIZER)
    assert list((tmp_path / "with").rglob("events.out.tfevents.*"))
    assert not list((tmp_path / "without").rglob("events.out.tfevents.*"))


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "is_tensorboard_available", lambda: False)
    with pytest.raises(UserError, match="needs tensorboard; pip install tensorboard"):
        fit(tiny_pair(), data_of(), settings_of(tmp_path, tensorboard=True), tokenizer=TOKENIZER)


# -- a whole run -----------------------------------------------------------------------------------------------------


def test_run_leaves_model_picture_and_settings(tmp_path, talking_source, capsys):
    train_file = write_lines(tmp_path / "data.jsonl", conversations())
    settings = run_settings(tmp_path / "run", talking_source, train_file)
    folder = train(settings, command=[])
    model = CombinedModel.from_pretrained(folder)
    assert model.tokenizer.chat_template == TOKENIZER.chat_template
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    again = load_settings(tmp_path / "run" / "settings.yaml")
    assert again == settings
    said = capsys.readouterr().out
    assert "training: kept 11 of 11 examples" in said and "validation: kept 1 of 1 examples" in said
    assert "the source's stay frozen" in said


def test_equal_settings_give_equal_models(tmp_path, talking_source):
    train_file = write_lines(tmp_path / "data.jsonl", conversations())
    models = []
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        settings = run_settings(tmp_path / name, talking_source, train_file, training={"seed": seed})
        models.append(weights_of(CombinedModel.from_pretrained(train(settings, command=[]))))
    assert_same_weights(models[0], models[1])
    assert not torch.equal(models[0]["bridge.pre_projection.weight"], models[2]["bridge.pre_projection.weight"])


def test_published_training_form_runs(tmp_path, talking_source):
    train_file = write_lines(tmp_path / "data.jsonl", conversations())
    settings = run_settings(
        tmp_path / "run",
        talking_source,
        train_file,
        model={"head": "new", "visibility": "causal"},
        data={"template": "plain", "loss_on": "all"},
        training={"early_stopping_patience": 5},
    )
    model = CombinedModel.from_pretrained(train(settings, command=[]))
    question = [{"role": "user", "content": "1 + 2 ?"}]
    text = model.tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert text == "User:\n\n1 + 2 ?\n\nAssistant:\n\n"


def test_trained_pair_is_trained_further(tmp_path, talking_source):
    lines = write_lines(tmp_path / "lines.jsonl", conversations())
    first = train(run_settings(tmp_path / "first", talking_source, lines), command=[])
    settings = run_settings(tmp_path / "second", talking_source, lines, training={"learning_rate_bridge": 1e-9})
    settings = settings.model_copy(update={"model": ModelSettings(pretrained=str(first))})
    settings = settings.model_copy(
        update={"training": settings.training.model_copy(update={"learning_rate_generator": 1e-9})}
    )
    second = train(settings, command=[])
    before, after = (dict(CombinedModel.from_pretrained(folder).named_parameters()) for folder in (first, second))
    for name in before:
        torch.testing.assert_close(before[name], after[name], atol=1e-6, rtol=0)
    assert load_settings(tmp_path / "second" / "settings.yaml").model.pretrained == str(first)


def test_generator_is_trained_alone_with_its_own_tokenizer(tmp_path, talking_source):
    lines = write_lines(tmp_path / "lines.jsonl", conversations())
    config = tiny_generator_config(vocab_size=VOCAB)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt")
    TOKENIZER.save_pretrained(tmp_path / "gpt")
    settings = run_settings(tmp_path / "alone", talking_source, lines)
    alone = ModelSettings(source=None, generator=str(tmp_path / "gpt"))
    folder = train(settings.model_copy(update={"model": alone}), command=[])
    model, tokenizer = load_trained(folder)
    assert type(model).__name__ == "GPTNeoForCausalLM"
    asked = torch.tensor([encode_prompt([{"role": "user", "content": "1 + 1 ?"}], tokenizer)])
    assert model.generate(asked, max_new_tokens=2, min_new_tokens=2).shape[1] == asked.shape[1] + 2
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt")
    assert not torch.equal(before.lm_head.weight, model.lm_head.weight.cpu())
    assert load_settings(tmp_path / "alone" / "settings.yaml").model.source is None


def test_source_without_a_tokenizer_is_refused(tmp_path, stored_source):
    train_file = write_lines(tmp_path / "data.jsonl", conversations())
    with pytest.raises(UserError, match="has no tokenizer beside its weights"):
        train(run_settings(tmp_path / "run", stored_source, train_file), command=[])


# -- data ------------------------------------------------------------------------------------------------------------


def load(**fields):
    return load_data(DataSettings(**fields), TOKENIZER, vocab_size=VOCAB)


def test_data_are_split_by_seed_and_words_collected(tmp_path):
    train_file = str(write_lines(tmp_path / "data.jsonl", conversations()))
    data = load(train_file=train_file, validation_fraction=0.25, seed=3)
    assert (len(data.training), len(data.validation)) == (9, 3)
    ids = lambda data: [example.input_ids for example in data.training]  # noqa: E731
    assert ids(load(train_file=train_file, validation_fraction=0.25, seed=3)) == ids(data)
    assert ids(load(train_file=train_file, validation_fraction=0.25, seed=4)) != ids(data)
    answers = {word for example in data.training for word in example.response_ids}
    assert set(data.trained_words.tolist()) == answers
    everything = {word for example in data.training for word in example.input_ids}
    assert set(load(train_file=train_file, loss_on="all", seed=3).trained_words.tolist()) >= everything - answers


def test_validation_file_replaces_the_split(tmp_path):
    train_file = write_lines(tmp_path / "train.jsonl", conversations(8))
    validation_file = write_lines(tmp_path / "validation.jsonl", conversations(10)[8:])
    data = load(train_file=str(train_file), validation_file=str(validation_file))
    assert (len(data.training), len(data.validation)) == (8, 2)


def test_number_of_examples_is_drawn_from_the_file(tmp_path):
    train_file = str(write_lines(tmp_path / "data.jsonl", conversations()))
    assert len(load(train_file=train_file, num_examples=5, validation_fraction=0).training) == 5


def test_variations_are_made_of_the_training_problems_alone(tmp_path):
    told = "jo had number0 w{0} . he lost number1 of them . how many w{0} are left ?,9 {0},- number0 number1,{1}"
    rows = (told.format(lost, 9 - lost) for lost in range(2, 8))
    train_file = tmp_path / "problems.csv"
    train_file.write_text("\n".join(["Question,Numbers,Equation,Answer", *rows]))
    settings = {"task": "math-word-problems", "train_file": str(train_file), "validation_fraction": 0.34}
    plain, varied, twice = (load(**settings, variations=num) for num in range(3))
    ids = lambda examples: [example.input_ids for example in examples]  # noqa: E731
    assert ids(varied.validation) == ids(plain.validation)
    assert ids(varied.training[:4]) == ids(plain.training) and 4 < len(varied.training) <= 8
    assert ids(twice.training[: len(varied.training)]) == ids(varied.training)
    assert len(varied.training) < len(twice.training) <= 12


def test_token_beyond_the_sources_vocabulary_is_refused(tmp_path):
    tokenizer = with_template(TOKENIZER, "chat")
    tokenizer.add_tokens([f"extra{index}" for index in range(30)])
    text = [{"role": "user", "content": "extra29"}, {"role": "assistant", "content": "1"}]
    settings = DataSettings(train_file=str(write_lines(tmp_path / "data.jsonl", [text])), validation_fraction=0)
    with pytest.raises(UserError, match="'extra29' has id .* and the source's vocabulary ends at 66"):
        load_data(settings, tokenizer, vocab_size=VOCAB)


# -- the output folder -----------------------------------------------------------------------------------------------


def claim(folder, **changes):
    data = {"train_file": "nothing.jsonl"}
    with claimed(Settings(data=data, training={"output_dir": folder} | changes)):
        pass


def test_output_folder_that_holds_something_is_refused(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").touch()
    for resume in (False, "auto", True):
        with pytest.raises(UserError, match=r"output_dir=.*run exists and is not empty; choose another"):
            claim(run, resume=resume)
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]


def test_same_command_goes_on_in_its_folder_unless_told_not_to(tmp_path):
    for _ in range(2):
        claim(tmp_path / "run")
    with pytest.raises(UserError, match="exists and is not empty"):
        claim(tmp_path / "run", resume=False)


def test_two_runs_into_one_folder_are_refused(tmp_path):
    settings = Settings(data={"train_file": "nothing.jsonl"}, training={"output_dir": tmp_path / "run"})
    with (
        claimed(settings),
        pytest.raises(UserError, match=r"another training is writing into .*run; wait until it ends"),
    ):
        claim(tmp_path / "run")
    claim(tmp_path / "run")


def begun(folder, **changes):
    """As a run that has written a checkpoint."""
    claim(folder, **changes)
    (folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    return folder


def test_run_of_other_settings_is_refused_once_it_has_trained(tmp_path):
    claim(tmp_path / "fresh", seed=1)
    claim(tmp_path / "fresh", seed=2)
    run = begun(tmp_path / "run", max_steps=5, seed=1)
    claim(run, max_steps=9, seed=1, save_steps=2)
    with pytest.raises(UserError, match=r"holds a run with training.seed=1, now it is 2; resume with the settings"):
        claim(run, max_steps=9, seed=2)
    (run / "settings.yaml").write_text("training: {sed: 1}")
    with pytest.raises(UserError, match="unknown key training.sed; .*cannot be told whether the run there is this one"):
        claim(run)


def digests_of(number):
    return {"training": examples_digest(examples(number)), "validation": examples_digest([])}


def test_run_on_other_data_is_refused_once_it_has_trained(tmp_path):
    run = begun(tmp_path / "run")
    refuse_other_examples(run, digests_of(3))
    refuse_other_examples(run, digests_of(3))
    with pytest.raises(UserError, match="holds a run that began with other training examples; bring the data back"):
        refuse_other_examples(run, digests_of(4))


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    run = begun(tmp_path / "run")
    (run / "checkpoints" / ".checkpoint-6.tmp" / "checkpoint-6").mkdir(parents=True)
    (run / ".loss.png.x.tmp").touch()
    claim(run)
    assert sorted(path.name for path in run.rglob("*") if path.name != ".lock") == [
        "checkpoint-3", "checkpoints", "settings.yaml", "trainer_state.json",
    ]  # fmt: skip


@pytest.mark.parametrize("resume", [False, "auto"])
def test_output_folder_below_a_file_is_refused(tmp_path, resume):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/below cannot be written \(.+\); choose another"):
        claim(tmp_path / "file" / "below", resume=resume)


@pytest.mark.parametrize("resume", [False, "auto"])
def test_output_folder_that_is_a_file_is_refused(tmp_path, resume):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, not a folder; choose another"):
        claim(tmp_path / "file", resume=resume)


def test_nothing_is_computed_for_an_output_folder_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(training, "build_model", lambda *args, **kwargs: pytest.fail("too late"))
    with pytest.raises(UserError, match="cannot be written"):
        train(run_settings(tmp_path / "file" / "run", "nowhere", "nothing.jsonl"), command=[])
