"""Competitors keep within their budget, and learn from what they should."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config

from llm_modules import Source, UserError
from llm_modules.baselines import GeneratorAlone
from llm_modules.compare.adapters import AdaptedSource
from llm_modules.compare.budget import Budget, Cost, Meter
from llm_modules.compare.counting import counted
from llm_modules.compare.distillation import Distilled
from llm_modules.compare.loop import rate_factor, train_within_
from llm_modules.compare.reading import READING_SHARE, read_within
from llm_modules.compare.sizes import of_size
from llm_modules.data.dataset import Collator
from llm_modules.data.templates import Example
from llm_modules.features import with_knowledge
from llm_modules.knowledge import Knowledge
from llm_modules.loss import IGNORED, LossVocabulary
from llm_modules.settings import TrainingSettings
from tests.conftest import VOCAB, random_ids, tiny_generator_config, tiny_pair, tiny_source_config, tiny_tokenizer

EXAMPLES = [Example([5, n, 6], [n, n + 1, 2]) for n in range(10, 50)]
SETTINGS = TrainingSettings(batch_size=4, learning_rate_bridge=3e-3, learning_rate_generator=3e-3)


def tiny_source(seed=3):
    torch.manual_seed(seed)
    return Source.of(tiny_source_config())


def alone(kind=GeneratorAlone, **kwargs):
    torch.manual_seed(0)
    special = tiny_pair().generation_config
    made = GeneratorAlone.from_config(tiny_generator_config(), vocab_size=VOCAB, generation_config=special)
    return made if kind is GeneratorAlone else kind(made.model, **kwargs)


def trained(model, meter, examples=EXAMPLES, settings=SETTINGS, flops=1000.0):
    return train_within_(
        model,
        examples,
        settings,
        tokenizer=tiny_tokenizer(),
        loss_on="response",
        meter=meter,
        cost_per_token=Cost(1e-4, flops),
        label="training",
    )


# -- budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("300s", Budget(300, "s")),
        ("1.5h", Budget(5400, "s")),
        ("5m", Budget(300, "s")),
        ("2e15flops", Budget(2e15, "flops")),
        (" 2E15 FLOPs ", Budget(2e15, "flops")),
    ],
)
def test_budget_is_time_or_work(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "300", "0s", "-5s", "fast", "3e15", "1e9s s"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="is no budget; give time"):
        Budget.parse(text)


@given(
    passed=st.floats(0, 1),
    step=st.integers(1, 1000),
    warmup=st.sampled_from([0.0, 0.05, 0.5, 1.0, 20.0]),
    course=st.sampled_from(["linear", "cosine", "constant", "constant_with_warmup"]),
)
def test_rate_follows_the_budget_and_ends_with_it(passed, step, warmup, course):
    told = TrainingSettings(lr_scheduler=course, warmup_steps=warmup)
    assert 0 <= rate_factor(told, passed=passed, step=step) <= 1
    if course in ("linear", "cosine"):
        assert rate_factor(told, passed=1.0, step=step) == pytest.approx(0, abs=1e-9)
        later = rate_factor(told, passed=max(passed, 0.5), step=1000)
        assert rate_factor(told, passed=1.0, step=1000) <= later


def test_training_ends_before_the_budget_does_and_lowers_the_loss():
    meter = Meter(Budget(60 * 4 * 6 * 1000.0, "flops"))  # 60 updates of 4 examples of 6 tokens
    run = trained(alone(), meter)
    assert len(run.losses) == 60
    assert meter.spent == pytest.approx(1.0) and run.cost.flops == meter.cost.flops
    assert sum(run.losses[-10:]) < 0.9 * sum(run.losses[:10])


def test_training_by_the_clock_ends_near_it():
    meter = Meter(Budget(0.5, "s"))
    run = trained(alone(), meter)
    assert len(run.losses) > 3 and 0.6 < meter.spent < 1.2


def test_a_budget_smaller_than_an_update_still_makes_one():
    run = trained(alone(), Meter(Budget(1.0, "flops")))
    assert len(run.losses) == 1


def test_counted_flops_of_a_linear_layer_are_its_products():
    rows, layer = torch.randn(3, 5), torch.nn.Linear(5, 7, bias=False)
    assert counted(lambda: layer(rows)).flops == 2 * 3 * 5 * 7
    assert counted(lambda: torch.zeros(3, 7).addmm_(rows, layer.weight.T.detach())).flops == 2 * 3 * 5 * 7
    attend = lambda: F.scaled_dot_product_attention(*[torch.randn(1, 2, 4, 8)] * 3)  # noqa: E731
    assert counted(attend).flops == 2 * (2 * 2 * 4 * 4 * 8)


# -- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_reading_within_a_budget_says_what_reading_says(visibility):
    pair = tiny_pair(visibility=visibility, taps=[0, -1])
    found = read_within(
        pair.source,
        EXAMPLES,
        taps=pair.config.taps,
        visibility=visibility,
        meter=(meter := Meter(Budget(1e12, "flops"))),
        cost_per_token=Cost(0, 10.0),
        seed=0,
        label="reading",
    )
    assert sorted(one.input_ids for one in found) == sorted(one.input_ids for one in EXAMPLES)
    assert meter.cost.flops > 0 and meter.cost.seconds > 0
    expected = {tuple(one.input_ids): one.knowledge for one in with_knowledge(pair, EXAMPLES)}
    for one in found:
        torch.testing.assert_close(one.knowledge, expected[tuple(one.input_ids)], atol=1e-4, rtol=1e-4)


def test_reading_stops_at_its_share_of_the_budget():
    pair = tiny_pair(visibility="causal")
    kwargs = {"taps": pair.config.taps, "visibility": "causal", "seed": 0, "label": "reading"}
    meter = Meter(Budget(1000.0, "flops"))
    found = read_within(pair.source, EXAMPLES, meter=meter, cost_per_token=Cost(0, 10.0), **kwargs)
    assert 2 <= len(found) < len(EXAMPLES) and 0.5 * READING_SHARE < meter.spent <= READING_SHARE
    small = Meter(Budget(1.0, "flops"))
    assert len(read_within(pair.source, EXAMPLES, meter=small, cost_per_token=Cost(0, 10.0), **kwargs)) == 1


# -- adapters --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
@pytest.mark.parametrize("method", ["lora", "shadow", "full"])
def test_adapted_source_starts_as_the_source_trains_what_it_should_and_answers(method):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    source = AutoModelForCausalLM.from_config(tiny_source_config(tie_word_embeddings=True)).eval()
    inputs = Collator(0)([Example([5, 6, 7], [8, 9, 10, 11]), Example([12], [13, 14])])
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        expected = source(**plain).loss.item()
        everything = LossVocabulary(torch.arange(VOCAB), torch.zeros(VOCAB))
        model = AdaptedSource(method, source).eval()
        assert model(**inputs).loss.item() == pytest.approx(expected, abs=1e-5)
        assert model(**inputs, loss_vocabulary=everything).loss.item() == pytest.approx(expected, abs=1e-5)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    meter = Meter(Budget(10 * 4 * 6 * 1000.0, "flops"))
    trained(model, meter)
    after = dict(model.named_parameters())
    assert all(torch.equal(before, after[name]) for name, before in frozen.items())
    assert (model.num_parameters() == model.num_parameters(only_trainable=False)) == (method == "full")
    with torch.no_grad():
        assert model(**inputs).loss.item() != pytest.approx(expected, abs=1e-5)
    written = model.generate(random_ids(2, 4), max_new_tokens=3, do_sample=False)
    assert written.shape[0] == 2 and 5 <= written.shape[1] <= 7


def test_a_source_that_bends_its_logits_is_refused():
    source = AutoModelForCausalLM.from_config(tiny_source_config())
    source.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="bends its logits"):
        AdaptedSource("full", source)


# -- distillation --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [False, True])
def test_distillation_mixes_the_answers_with_the_teacher(sampled):
    teacher = tiny_source()
    model = alone(Distilled, teacher=teacher).eval()
    ids = random_ids(2, 7)
    labels = ids.clone()
    labels[:, :3] = IGNORED
    last = teacher.config.num_hidden_layers
    states = teacher.read(ids, attention_mask=torch.ones_like(ids), taps=[last])
    known = Knowledge(states, torch.ones(ids.shape, dtype=torch.bool))
    words = torch.arange(VOCAB)
    vocabulary = LossVocabulary(words, torch.rand(VOCAB)) if sampled else None
    weights = vocabulary.log_weights if sampled else 0.0
    found = model(ids, labels=labels, knowledge=known, loss_vocabulary=vocabulary).loss
    said = (model(ids).logits[:, 2:-1] + weights).log_softmax(-1)
    right = (teacher.model(ids).logits[:, 2:-1] + weights).log_softmax(-1)
    apart = (right.exp() * (right - said)).sum(-1).mean()
    wanted = F.nll_loss(said.flatten(0, 1), ids[:, 3:].flatten())
    assert found.item() == pytest.approx((0.5 * apart + 0.5 * wanted).item(), abs=1e-5)
    assert model(ids, labels=labels).loss.item() == pytest.approx(
        F.cross_entropy(model(ids).logits[:, 2:-1].flatten(0, 1), ids[:, 3:].flatten()).item(), abs=1e-5
    )
    found.backward()
    assert all(parameter.grad is not None for parameter in model.model.base_model.h.parameters())


def test_a_generator_learns_to_speak_as_its_teacher():
    teacher = tiny_source()
    model = alone(Distilled, teacher=teacher)
    last = teacher.config.num_hidden_layers
    read = read_within(
        teacher,
        EXAMPLES,
        taps=[last],
        visibility="causal",
        meter=Meter(Budget(1e12, "flops")),
        cost_per_token=Cost(0, 1.0),
        seed=0,
        label="reading",
    )
    run = trained(model, Meter(Budget(80 * 4 * 6 * 1000.0, "flops")), examples=read)
    assert sum(run.losses[-10:]) < sum(run.losses[:10])


# -- sizes --------------------------------------------------------------------------------


@settings(max_examples=12)
@given(wanted=st.integers(300, 60_000))
def test_generator_of_a_size_is_the_nearest_one(wanted):
    config = tiny_source_config(hidden_size=12, num_attention_heads=3, num_key_value_heads=3, num_hidden_layers=1)
    found = of_size(config, vocab_size=VOCAB, num_parameters=wanted)
    step = 2 * config.num_attention_heads
    assert found.hidden_size % step == 0 and found.vocab_size == VOCAB

    def size(width):
        fields = config.to_dict() | {
            "hidden_size": width,
            "intermediate_size": max(1, round(40 * width / 12)),
            "head_dim": width // 3,
            "tie_word_embeddings": True,
            "vocab_size": VOCAB,
        }
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(type(config)(**fields)).num_parameters()

    chosen = abs(size(found.hidden_size) - wanted)
    for other in (found.hidden_size - step, found.hidden_size + step):
        if other > 0:
            assert chosen <= abs(size(other) - wanted)


def test_generator_of_a_size_trains_as_any_other():
    for config in (tiny_generator_config(), GPT2Config(n_embd=12, n_head=3, n_layer=1)):
        found = of_size(config, vocab_size=VOCAB, num_parameters=9000)
        model = GeneratorAlone.from_config(found, vocab_size=VOCAB, generation_config=tiny_pair().generation_config)
        assert model.num_parameters() == pytest.approx(9000, rel=0.4)
        assert math.isfinite(model(random_ids(2, 5), labels=random_ids(2, 5)).loss.item())
