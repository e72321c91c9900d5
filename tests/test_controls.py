"""Controls change what the source says, or shut a layer, and nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_modules import UserError
from llm_modules.controls import (
    NoisySource,
    SwappedSource,
    WordsSource,
    all_controls,
    closed_gates,
    lend,
    measure_states,
    on_source,
    untrained_source,
    with_zeroed_knowledge,
)
from llm_modules.data.templates import Example
from llm_modules.fingerprint import fingerprint_model
from tests.conftest import D_SOURCE, VOCAB, random_ids, randomise_, tiny_pair

CHOICES = [{"taps": [0, -1]}, {"taps": [0]}, {"visibility": "causal", "start": "identity"}]
VISIBILITIES = ["prompt", "causal"]


def examples(*pairs):
    return [Example(list(prompt), list(response)) for prompt, response in pairs]


FOUR = examples(([3, 4, 5], [6, 2]), ([3, 7, 5], [8, 9, 2]), ([3, 4, 4, 5], [10, 2]), ([3, 9, 9, 9, 5], [11, 2]))


@pytest.mark.parametrize("choices", CHOICES)
@torch.no_grad()
def test_zeroed_knowledge_changes_answers_and_leaves_the_model_as_it_was(choices):
    model, ids = randomise_(tiny_pair(**choices)), random_ids(2, 7)
    before, fingerprint = model(ids).logits, fingerprint_model(model.source.model)
    silent = with_zeroed_knowledge(model)
    states = silent.read(ids).states
    assert not states.any() and states.shape == model.read(ids).states.shape
    assert not torch.allclose(silent(ids).logits, before, atol=1e-3)
    other = random_ids(2, 7, seed=5)
    if model.config.visibility == "causal":  # there the words come through the source alone
        assert torch.equal(silent(ids).logits, silent(other).logits)
    assert silent.generate(ids, max_new_tokens=5, do_sample=False).shape == (2, 12)
    assert torch.equal(model(ids).logits, before)
    assert fingerprint_model(model.source.model) == fingerprint
    assert model.read(ids).states.any()


def test_weights_are_shared_and_tables_stay():
    model = tiny_pair()
    silent = with_zeroed_knowledge(model)
    assert silent.bridge is model.bridge and silent.generator is model.generator
    assert silent.source.output_matrix is model.source.output_matrix
    assert torch.equal(silent.source.embed(random_ids(1, 4)), model.source.embed(random_ids(1, 4)))
    assert type(model.source) is not type(silent.source)


@pytest.mark.parametrize("choices", CHOICES)
@torch.no_grad()
def test_every_control_writes_and_leaves_the_model_as_it_was(choices):
    model = randomise_(tiny_pair(**choices))
    ids = torch.tensor([FOUR[0].prompt_ids])
    before, fingerprint = model(ids).logits, fingerprint_model(model.source.model)
    names = []
    for control in all_controls(model, FOUR, seed=7):  # the pair's own weights are those of seed 0
        with control.applied() as view:
            assert view.read(ids).states.shape == model.read(ids).states.shape
            assert view.read(ids).states.dtype == model.dtype
            same = torch.allclose(view(ids).logits, before, atol=1e-4)
            assert same == (control.name == "as trained" or (control.name == "words only" and choices == CHOICES[1]))
            assert view.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None).shape == (1, 7)
        names.append(control.name)
        torch.testing.assert_close(model(ids).logits, before)
    assert names == [
        "as trained", "zeros", "noise", "another prompt", "untrained source", "words only",
        "layer 1 shut", "layer 2 shut", "all layers shut",
    ]  # fmt: skip
    assert fingerprint_model(model.source.model) == fingerprint


# -- another prompt ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visibility", VISIBILITIES)
@torch.no_grad()
def test_states_of_another_prompt_are_those_that_it_has_with_the_same_response(visibility):
    model = randomise_(tiny_pair(visibility=visibility, taps=[1, -1]))
    mine, other, response = (3, 4, 5, 6), (3, 9, 8, 7), [10, 11, 12]
    swapped = on_source(model, SwappedSource(model.source, {mine: other}))
    prompts = (torch.arange(7) < 4)[None]
    found = swapped(torch.tensor([[*mine, *response]]), prompt_mask=prompts).logits
    assert torch.equal(found, model(torch.tensor([[*other, *response]]), prompt_mask=prompts).logits)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    written = swapped.generate(torch.tensor([mine]), **settings)
    assert torch.equal(written[:, 4:], model.generate(torch.tensor([other]), **settings)[:, 4:])
    padded = torch.tensor([[2, 2, *mine]])
    mask = (torch.arange(6) >= 2)[None].long()
    assert torch.equal(swapped.generate(padded, attention_mask=mask, **settings)[:, 6:], written[:, 4:])


def test_other_prompt_is_cut_or_filled_at_its_beginning():
    model = tiny_pair()
    source = SwappedSource(model.source, {(3, 4, 5): (6, 7, 8, 9), (3, 4, 5, 6, 7): (8, 9, 10)})
    for given_ids, read in (([3, 4, 5], [7, 8, 9]), ([3, 4, 5, 6, 7], [8, 8, 8, 9, 10])):
        states = on_source(model, source).read(torch.tensor([given_ids])).states
        assert torch.equal(states, model.read(torch.tensor([read])).states)


def test_unknown_prompt_is_refused_by_a_swapped_source():
    model = tiny_pair()
    swapped = on_source(model, SwappedSource(model.source, {(3, 4): (5, 6)}))
    with pytest.raises(UserError, match="begins with none of the prompts"):
        swapped.read(torch.tensor([[4, 3]]))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.lists(st.integers(3, 9), min_size=1, max_size=5), st.integers(3, 6)), min_size=2))
def test_lent_prompt_is_the_nearest_in_length_of_those_with_another_response(drawn):
    asked = examples(*((prompt, [response, 2]) for prompt, response in drawn))
    others = [
        [one for one in asked if one.prompt_ids != each.prompt_ids and one.response_ids != each.response_ids]
        for each in asked
    ]
    if not all(others):
        with pytest.raises(UserError, match="the same prompt or the same response"):
            lend(asked, seed=0)
        return
    lent = lend(asked, seed=0)
    for each, allowed in zip(asked, others, strict=True):
        length = len(each.prompt_ids)
        donor = asked[lent[tuple(each.prompt_ids)]]
        assert donor.prompt_ids != each.prompt_ids
        if sum(one.prompt_ids == each.prompt_ids for one in asked) == 1:
            nearest = min(abs(len(one.prompt_ids) - length) for one in allowed)
            assert abs(len(donor.prompt_ids) - length) == nearest and donor.response_ids != each.response_ids


# -- noise, random weights, words --------------------------------------------------------------------------------------


def test_measured_states_leave_the_first_token_out():
    model = tiny_pair(taps=[0, 2, -1])
    mean, deviation = measure_states(model, FOUR)
    rows = torch.cat([model.read(torch.tensor([one.prompt_ids])).states[0, 1:] for one in FOUR])
    assert mean.shape == deviation.shape == (3, D_SOURCE)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(deviation, rows.std(0, correction=0))


def test_noise_has_the_statistics_of_the_states_and_follows_its_seed():
    model = tiny_pair(taps=[0, -1])
    mean, deviation = measure_states(model, FOUR)
    one, same, other = (NoisySource(model.source, mean=mean, deviation=deviation, seed=seed) for seed in (1, 1, 2))
    ids = random_ids(50, 40)
    noise, again, another = (on_source(model, view).read(ids).states for view in (one, same, other))
    assert torch.equal(noise, again) and not torch.equal(noise, another)
    assert torch.allclose(noise.mean((0, 1)), mean, atol=0.15 * deviation.max())
    assert torch.allclose(noise.std((0, 1)), deviation, rtol=0.1)


def test_untrained_source_has_random_weights_by_seed_and_leaves_the_random_state_alone():
    model, ids = tiny_pair(), random_ids(2, 5)
    before = torch.get_rng_state()
    one, same, other = (untrained_source(model.source, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    states = [on_source(model, view).read(ids).states for view in (one, same, other)]
    assert torch.equal(states[0], states[1]) and not torch.allclose(states[0], states[2])
    assert not torch.allclose(states[0], model.read(ids).states)
    assert one.embedding is model.source.embedding and one.output_matrix is model.source.output_matrix
    assert not any(parameter.requires_grad for parameter in one.model.parameters())


def test_words_only_know_nothing_of_their_neighbours():
    model = tiny_pair(taps=[0, 1, -1])
    words = on_source(model, WordsSource(model.source))
    one, other = torch.tensor([[3, 4, 5]]), torch.tensor([[9, 4, VOCAB - 1]])
    assert torch.equal(words.read(one).states[:, 1], words.read(other).states[:, 1])
    assert torch.equal(words.read(one).states[:, :, 0], model.read(one).states[:, :, 0])  # tap 0 is the embeddings
    assert not torch.allclose(words.read(one).states[:, :, 2], model.read(one).states[:, :, 2])


# -- gates -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_shut_layer_passes_on_its_queries_whatever_was_read():
    model = randomise_(tiny_pair(num_bridge_layers=3))
    seen = []
    hook = model.bridge.layers[1].register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with closed_gates(model, [1]):
        model(random_ids(2, 6))
    model(random_ids(2, 6))
    hook.remove()
    assert torch.equal(*seen[0]) and not torch.allclose(*seen[1])


def test_layers_inside_the_generator_are_shut_one_by_one_like_those_in_front():
    model = tiny_pair(placement="interleaved", num_bridge_layers=1)
    examples = [Example([3, 4, 5], [6, 2]), Example([7, 8, 9], [10, 2])]
    names = [control.name for control in all_controls(model, examples, seed=0)]
    assert names[-4:] == ["layer 1 shut", "layer 2 shut", "layer 3 shut", "all layers shut"]


@torch.no_grad()
def test_gates_open_again_after_an_error():
    model, ids = randomise_(tiny_pair()), random_ids(2, 6)
    before = model(ids).logits
    with closed_gates(model, [0, 1]):
        assert not torch.allclose(model(ids).logits, before)
    with pytest.raises(IndexError), closed_gates(model, [0, 1]):
        model(ids + 1000)
    assert torch.equal(model(ids).logits, before)
