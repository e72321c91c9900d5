"""What `llm-modules plan` says is what building, training and loading then take."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks import paper_shapes
from llm_modules import CombinedModel, Source
from llm_modules.cli import app
from llm_modules.corpus import Corpus, Given, Schedule
from llm_modules.costs import Body, Lengths, arithmetic
from llm_modules.data.templates import Example
from llm_modules.errors import UserError
from llm_modules.generator import build_generator, load_generator
from llm_modules.planning import plan
from llm_modules.settings import Settings, TrainingSettings
from llm_modules.shapes import KNOWN_SHAPES, choices_of, known_shape, shape_of, skeleton
from llm_modules.training import TrainingData, fit
from tests.conftest import random_ids, tiny_generator_config, tiny_pair, tiny_source_config, tiny_tokenizer

GPT_NEO = {"model_type": "gpt_neo", **tiny_generator_config().to_diff_dict()}
LLAMA = {"model_type": "llama", **tiny_source_config(hidden_size=12, num_hidden_layers=2, vocab_size=9).to_diff_dict()}
CHOICES = [
    {"visibility": "bidirectional", "head": "new"},
    {"visibility": "causal", "head": "source", "start": "identity", "num_bridge_layers": 1},
    {"visibility": "prompt", "head": "source", "taps": [0, 2, -1], "generator_window": 5},
    {"visibility": "causal", "head": "new", "taps": [1], "d_adapter": 7},
    {"visibility": "prompt", "head": "source", "placement": "interleaved", "interleave_every": 2, "taps": [2]},
    {"visibility": "causal", "head": "source", "placement": "interleaved", "num_bridge_layers": 1},
    {"visibility": "causal", "head": "source", "num_bridge_layers": 0, "pre_projection": False, "taps": [1, -1]},
    {"visibility": "prompt", "head": "new", "pre_projection": False, "gate_start": 0.5},
]
RECIPES = Path(__file__).parents[1] / "recipes"


def settings_of(source, generator=GPT_NEO, data=None, training=None, **choices):
    fields = {"num_heads": 2, "d_adapter": 10, **choices}
    data = {"train_file": "nowhere.jsonl", "max_length": 64, **(data or {})}
    model = {"source": source and str(source), "generator": generator}
    return Settings(model=model | (fields if source else {}), data=data, training=training or {})


def corpus(tokens=40, prompt_tokens=10, num_training=1000, longest=None, **fields):
    return Corpus(num_training, 0, tokens, prompt_tokens, longest or tokens, "given", **fields)


def total(planned, device="cpu"):
    return sum(planned.memory[device].values())


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def source(tmp_path):
    """A folder with a configuration and nothing else."""
    tiny_source_config().save_pretrained(tmp_path / "shape")
    return tmp_path / "shape"


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", [GPT_NEO, LLAMA], ids=["gpt_neo", "llama"])
@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: "-".join(map(str, choices.values())))
@pytest.mark.filterwarnings("ignore:visibility='bidirectional'")
def test_parameters_are_those_of_the_pair_that_is_built(source, generator, choices):
    settings = settings_of(source, generator, **choices)
    planned = plan(settings, corpus=corpus())
    model = CombinedModel.from_modules(tiny_source_config(), generator, **choices_of(settings.model))
    assert planned.num_trainable == model.num_parameters()
    assert planned.frozen == model.source.model.num_parameters()
    assert planned.trainable["bridge"] == sum(parameter.numel() for parameter in model.bridge.parameters())


def test_a_generator_from_the_sources_blocks_is_planned_without_weights(source):
    settings = settings_of(source, {"first_blocks_of_source": 2})
    model = CombinedModel.from_modules(tiny_source_config(), settings.model.generator, **choices_of(settings.model))
    assert plan(settings, corpus=corpus()).num_trainable == model.num_parameters()
    with pytest.raises(UserError, match="first_blocks_of_source=9 must be 1 to 3, the blocks of the source"):
        plan(settings_of(source, {"first_blocks_of_source": 9}), corpus=corpus())


def test_parameters_of_a_generator_alone_are_its_own(tmp_path):
    tiny_generator_config(vocab_size=31).save_pretrained(tmp_path)
    planned = plan(settings_of(None, str(tmp_path)), corpus=corpus())
    table = 31 * 16
    body = build_generator(tiny_generator_config()).num_parameters()
    assert planned.trainable == {"generator": body + table}
    assert planned.frozen == planned.flops["source"] == planned.knowledge_bytes == 0


def test_parameters_of_a_trained_pair_are_its_own(tmp_path):
    pair = tiny_pair(visibility="causal", d_adapter=6)
    pair.save_pretrained(tmp_path)
    settings = Settings(model={"pretrained": str(tmp_path)}, data={"train_file": "nowhere.jsonl"})
    assert plan(settings, corpus=corpus()).num_trainable == pair.num_parameters()


def test_the_papers_pair_has_the_published_parameters_and_fewer_than_half_with_the_sources_head(offline):
    models, sizes = paper_shapes.MODELS.values(), {"num_bridge_layers": 2, "num_heads": 8, "d_adapter": 256}
    bones = skeleton(settings_of(*models, head="new", **sizes).model)
    shapes = [known_shape(name) for name in models]
    published = bones.model.num_parameters()
    embeds = sum(p.numel() for p in bones.model.bridge.response_embedding.parameters())  # not in the published wiring
    assert published - embeds == paper_shapes.published_parameters(*shapes) == 219_734_912
    assert bones.source.num_parameters() == 1_543_714_304
    own = skeleton(settings_of(*models, head="source", **sizes).model)
    assert own.model.num_parameters() < published / 2


# -- arithmetic ------------------------------------------------------------------------------------------------------

WIDE = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: "-".join(map(str, choices.values())))
@pytest.mark.filterwarnings("ignore:visibility='bidirectional'")
def test_flops_are_those_that_torch_counts(tmp_path, choices):
    """Wide enough that matrix products dominate, as they do in real pairs."""
    config = tiny_source_config(**WIDE, vocab_size=300, attn_implementation="eager")
    config.save_pretrained(tmp_path)
    generator = GPT_NEO | {"hidden_size": 48, "num_heads": 4}
    choices = {name: value for name, value in choices.items() if name != "generator_window"}
    settings = settings_of(tmp_path, generator, training={"batch_size": 2}, dropout=0.1, **choices)
    bones = skeleton(settings.model)
    expected = arithmetic(
        bones, settings, Lengths.of(bones, settings, tokens=48, prompt_tokens=16), num_words=config.vocab_size
    )
    model = CombinedModel.from_modules(config, generator, **choices_of(settings.model)).train()
    ids = random_ids(2, 48)
    labels = ids.clone()
    labels[:, :16] = -100
    prompt_mask = torch.arange(48).expand(2, 48) < 16
    with FlopCounterMode(display=False) as counted:
        knowledge = model.read(ids[:, :16] if choices["visibility"] == "prompt" else ids)
    assert counted.get_total_flops() / 2 == pytest.approx(expected.reading, rel=0.05)
    with FlopCounterMode(display=False) as counted:
        model(ids, labels=labels, prompt_mask=prompt_mask, knowledge=knowledge).loss.backward()
    assert counted.get_total_flops() / 2 == pytest.approx(expected.learning, rel=0.10)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(ids, labels=labels, prompt_mask=prompt_mask, knowledge=knowledge)
    assert counted.get_total_flops() / 2 == pytest.approx(expected.judging, rel=0.10)


def test_steps_are_those_of_the_trainer(tmp_path):
    training = TrainingSettings(
        output_dir=tmp_path,
        num_epochs=1.5,
        epoch_fraction=0.5,
        batch_size=3,
        gradient_accumulation_steps=2,
        eval_steps=2,
    )
    examples = [Example([3, 4, 5, 6], [7, 8, 9, 10, 2])] * 27
    schedule = Schedule.of(training, Corpus(27, 2, 9, 4, 9, "counted"))
    trainer = fit(tiny_pair(), TrainingData(examples, examples[:2]), training, tokenizer=tiny_tokenizer())
    assert trainer.state.global_step == schedule.num_steps
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == schedule.num_evaluations
    kept = list((tmp_path / "checkpoints").glob("checkpoint-*"))
    assert len(kept) <= schedule.num_checkpoints <= len(kept) + 1  # one more while it is written


# -- memory ----------------------------------------------------------------------------------------------------------


def kept_bytes(forward, parameters):
    """What autograd keeps of a forward pass, each storage once, the weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = forward()  # held, so that no storage is freed and its place given to another
    assert outputs is not None
    return sum(storages.values())


@pytest.mark.parametrize(
    "shape", [GPT_NEO | {"intermediate_size": 64}, LLAMA | {"num_hidden_layers": 8}], ids=["gpt_neo", "llama"]
)
def test_kept_memory_of_a_generator_is_what_autograd_keeps(shape):
    body = build_generator(load_generator(shape | {"hidden_size": 48})[0])
    states = torch.randn(1, 60, 48, requires_grad=True)
    kept = kept_bytes(lambda: body(inputs_embeds=states, use_cache=False).last_hidden_state, body.parameters())
    planned = Body.of(body).kept_bytes(60, score_bytes=4)
    assert planned == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("choices", CHOICES[1:], ids=lambda choices: "-".join(map(str, choices.values())))
def test_kept_memory_of_a_pair_is_what_autograd_keeps(tmp_path, choices, dropout):
    config = tiny_source_config(**WIDE, vocab_size=70)
    config.save_pretrained(tmp_path)
    generator = GPT_NEO | {"hidden_size": 48, "num_heads": 4}
    choices = {name: value for name, value in choices.items() if name != "generator_window"}
    settings = settings_of(tmp_path, generator, training={"batch_size": 1}, dropout=dropout, **choices)
    planned = plan(settings, corpus=corpus(60, 20, num_training=10**9))
    model = CombinedModel.from_modules(config, generator, **choices_of(settings.model)).train()
    ids = random_ids(1, 60)
    labels = ids.clone()
    labels[:, :20] = -100
    kept = kept_bytes(lambda: model(ids, labels=labels).loss, [*model.parameters(), model.source.output_matrix])
    assert planned.memory["cpu"]["kept for the backward pass"] == pytest.approx(kept, rel=0.1)


def test_optimizer_takes_two_numbers_a_parameter_and_muon_one(source):
    adam = plan(settings_of(source), corpus=corpus())
    muon = plan(settings_of(source, training={"optimizer": "muon"}), corpus=corpus())
    assert adam.memory["cpu"]["optimizer states"] == 8 * adam.num_trainable
    assert 4 * adam.num_trainable < muon.memory["cpu"]["optimizer states"] < 8 * adam.num_trainable


def test_a_budget_of_tokens_is_planned_as_the_examples_that_it_holds(source):
    held = corpus(longest=40)
    budget = int(3 * held.tokens_per_example)
    by_tokens = plan(settings_of(source, training={"tokens_per_batch": budget, "batch_size": 1}), corpus=held)
    by_examples = plan(settings_of(source, training={"batch_size": 3}), corpus=held)
    assert by_tokens.schedule == by_examples.schedule
    assert by_tokens.flops_per_step == by_examples.flops_per_step
    roomy = plan(settings_of(source, training={"tokens_per_batch": 2 * budget}), corpus=held)
    assert total(roomy, "cpu") > total(by_tokens, "cpu")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_memory_grows_with_batch_and_length_and_shrinks_with_the_sources_number_type(source, device):
    def needed(longest=40, batch_size=2, **choices):
        settings = settings_of(source, training={"batch_size": batch_size}, visibility="causal", **choices)
        return total(plan(settings, corpus=corpus(longest=longest)), device)

    assert needed(longest=40) < needed(longest=60) < needed(longest=60, batch_size=4)
    assert needed(source_dtype="bfloat16") < needed()
    assert needed(source_quantization="4bit") < needed(source_quantization="8bit") < needed()
    assert needed(taps=[1, 2]) > needed()


def test_knowledge_is_kept_where_it_fits_and_read_in_every_step_where_not(source):
    few, many = (plan(settings_of(source), corpus=corpus(num_training=n)) for n in (1000, 10**9))
    assert few.reads_once and not many.reads_once
    assert few.memory["cpu"]["knowledge kept"] == few.knowledge_bytes == 1000 * 10 * 24 * 4  # the prompts alone
    assert "knowledge kept" not in few.memory["gpu"]
    assert many.memory["cpu"]["knowledge kept"] == 0
    assert few.flops["source"] == 1000 * few.per_example.reading
    assert many.flops["source"] == 3 * 10**9 * many.per_example.reading
    assert "once, before training" in str(few) and "in every step" in str(many)


def test_a_store_takes_disk_instead_of_memory_and_the_source_still_reads_once(source):
    many = corpus(num_training=10**9)
    online, stored = (
        plan(settings_of(source, training={"features": features}), corpus=many) for features in ("memory", "auto")
    )
    narrow = plan(settings_of(source, training={"features": "auto", "features_dtype": "int8"}), corpus=many)
    assert (online.reads_once, stored.reads_once) == (False, True)
    assert stored.disk["feature store"] == stored.knowledge_bytes
    assert narrow.disk["feature store"] < 0.5 * stored.disk["feature store"]
    assert "feature store" not in online.disk
    assert stored.memory["cpu"]["knowledge kept"] == 0
    asked_not_to = plan(settings_of(source, training={"features": "online"}), corpus=corpus())
    assert not asked_not_to.reads_once


def test_knowledge_of_other_visibilities_covers_the_response(source):
    prompt, causal = (plan(settings_of(source, visibility=v), corpus=corpus()) for v in ("prompt", "causal"))
    assert causal.knowledge_bytes == 4 * prompt.knowledge_bytes


def test_half_of_the_layers_read_for_half(source):
    deep, early = (plan(settings_of(source, taps=taps), corpus=corpus()) for taps in ([3], [1]))
    assert early.per_example.reading == pytest.approx(deep.per_example.reading / 3)


# -- time and money --------------------------------------------------------------------------------------------------


def test_hours_follow_from_epochs_and_speed_and_dollars_from_hours(source):
    def planned(epochs, tflops=50, gb_per_s=100, **training):
        settings = settings_of(source, training={"num_epochs": epochs, **training})
        return plan(settings, corpus=corpus(num_training=10**9), tflops=tflops, gb_per_s=gb_per_s)

    once, twice, share = planned(1), planned(2), planned(2, epoch_fraction=0.5)
    fast, wide = planned(1, tflops=100), planned(1, gb_per_s=200)
    assert twice.hours == pytest.approx(2 * once.hours)
    assert share.hours == pytest.approx(once.hours)
    assert fast.hours + wide.hours == pytest.approx(1.5 * once.hours)  # half the arithmetic, half what is moved
    assert max(fast.hours, wide.hours) < once.hours
    assert once.dollars == once.hours * 0.8
    assert once.schedule.num_epochs == 1


def test_loss_on_the_prompt_too_costs_more(source):
    response, everything = (
        plan(settings_of(source, data={"loss_on": on}), corpus=corpus()) for on in ("response", "all")
    )
    assert response.per_example.learning < everything.per_example.learning


def test_fewer_words_in_the_loss_cost_less(source):
    training = {"sampled_words": 4}
    full, few = (plan(settings_of(source, training=t), corpus=corpus(num_words=8)) for t in ({}, training))
    assert few.per_example.learning < full.per_example.learning
    assert few.per_example.judging == full.per_example.judging  # validation is over all words


# -- the data --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    records = ({"prompt": f"{a} + {b} ?", "completion": str(a + b)} for a, b in itertools.product(range(5), range(4)))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_data_that_lie_here_are_counted(talking_source, lines):
    planned = plan(settings_of(talking_source, data={"train_file": lines, "validation_fraction": 0.1}))
    found = planned.corpus
    assert (found.num_training, found.num_validation, found.origin) == (18, 2, "counted")
    assert found.tokens_per_example == found.longest == 10 and found.prompt_tokens == 8


def test_data_elsewhere_are_given_or_assumed_and_the_plan_says_so(source):
    settings = settings_of(source)
    assumed = plan(settings)
    assert "data (ASSUMED: the data do not lie here" in str(assumed)
    given = plan(settings, given=Given(500, 30, 12)).corpus
    assert (given.num_examples, given.tokens_per_example, given.prompt_tokens, given.origin) == (500, 30, 12, "given")
    part = plan(settings, given=Given(examples=500)).corpus
    assert part.num_examples == 500 and "ASSUMED" in part.origin
    assert plan(settings_of(source, data={"num_examples": 70})).corpus.num_examples == 70


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Given(tokens_per_example=65), "tokens-per-example=65 is more than data.max_length and data.cut_to leave"),
        (Given(tokens_per_example=20, prompt_tokens=20), "prompt-tokens=20 leaves no response in examples of 20"),
    ],
)
def test_numbers_that_cannot_be_true_are_refused(source, given, message):
    with pytest.raises(UserError, match=message):
        plan(settings_of(source), given=given)


def test_example_too_long_for_the_generator_is_refused_where_counted_else_told(talking_source, lines):
    short = GPT_NEO | {"max_position_embeddings": 9}
    with pytest.raises(UserError, match="10 tokens are more than the generator's 9 positions"):
        plan(settings_of(talking_source, short, data={"train_file": lines}, visibility="causal"))
    assert "would be refused: 64 tokens" in str(plan(settings_of(talking_source, short, visibility="causal")))


# -- shapes and the command line -------------------------------------------------------------------------------------


def test_known_shapes_stand_in_for_an_unreachable_hub_and_that_is_said(offline):
    said = []
    assert shape_of("Qwen/Qwen2-1.5B", report=said.append).num_hidden_layers == 28
    assert said == ["Qwen/Qwen2-1.5B cannot be fetched here: planned with its known shape"]
    for name in KNOWN_SHAPES:
        assert shape_of(name, report=said.append).to_dict() == known_shape(name).to_dict()


def test_unknown_model_says_what_to_do_offline(offline):
    with pytest.raises(UserError, match="'nobody/nothing' cannot be read .* offline, give a folder with"):
        shape_of("nobody/nothing")


def test_folder_is_read_without_weights(source):
    assert not list(source.glob("*.safetensors"))
    assert shape_of(str(source)).hidden_size == 24
    (source / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        shape_of(str(source))


def test_folder_that_holds_no_pair_cannot_be_gone_on_from(source):
    settings = Settings(model={"pretrained": str(source)}, data={"train_file": "nowhere.jsonl"})
    with pytest.raises(UserError, match="holds a llama model, not a pair"):
        plan(settings)


def test_frozen_parameters_are_those_of_the_stored_source(stored_source):
    loaded = Source.load(stored_source)
    assert plan(settings_of(stored_source), corpus=corpus()).frozen == loaded.model.num_parameters()


def call(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_verb_prints_the_table(offline):
    result = call(RECIPES / "paper.yaml", "--examples", 1000, "--tokens-per-example", 2000, "--prompt-tokens", 300)
    assert result.exit_code == 0, result.output
    assert re.search(r"^  trainable +219,734,912$", result.stdout, re.MULTILINE)
    assert re.search(r"^  examples for training +900$", result.stdout, re.MULTILINE)
    assert "data (given)" in result.stdout and "needs: " in result.stdout
    assert call(RECIPES / "paper.yaml", "--tflops", 0).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml is not there"),
        ([RECIPES / "paper.yaml", "model.sauce=x"], "the nearest known key is model.source"),
        ([RECIPES / "paper.yaml", "model.source=nobody/nothing"], "offline, give a folder"),
        ([RECIPES / "paper.yaml", "model.num_heads=7"], "d_generator=768 is not divisible by num_heads=7"),
    ],
)
def test_recipe_that_cannot_be_planned_is_one_line(offline, arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_leak_must_be_asked_for_by_name(offline):
    result = call(RECIPES / "paper.yaml", "training.allow_leak=false")
    assert "note: training refuses visibility='bidirectional'" in result.stdout


# -- the benchmark ---------------------------------------------------------------------------------------------------


def test_the_benchmark_of_the_papers_shapes_holds_at_toy_shapes(capsys):
    assert paper_shapes.main(["--small"])
    assert "MISS" not in capsys.readouterr().out
