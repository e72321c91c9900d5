"""Prompts longer than the generator can hold: the bridge reads all of them, their end enters the generator."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_modules import CombinedModel, UserError
from llm_modules.attention import VisibleKnowledge
from llm_modules.window import Window
from tests.conftest import VOCAB, random_ids, randomise_, tiny_generator_config, tiny_pair, tiny_source_config

TABLE, LENGTH = 24, 90  # positions of the generator; tokens of a prompt far beyond them


def long_pair(**choices):
    return randomise_(tiny_pair(generator=tiny_generator_config(max_position_embeddings=TABLE), **choices))


@torch.no_grad()
def last_logits(model, ids, mask=None, **kwargs):
    return model(ids, attention_mask=mask, logits_to_keep=1, **kwargs).logits[:, -1]


# -- the window itself ------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=4),
    size=st.integers(1, 9),
)
def test_window_keeps_the_end_of_each_prompt_and_all_of_each_response(rows, size):
    length = max(sum(row) for row in rows)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    is_prompt = torch.zeros_like(real)
    expected = []
    for row, (padding, prompt_len, response_len) in enumerate(rows):
        real[row, padding : padding + prompt_len + response_len] = True
        is_prompt[row, padding : padding + prompt_len] = True
        first = padding + max(0, prompt_len - size)
        expected.append(list(range(first, padding + prompt_len + response_len)))
    window = Window.over(is_prompt, real, size=size)
    if all(prompt_len <= size for _, prompt_len, _ in rows):
        assert window is None
        return
    found = [window.columns[row][window.mask[row]].tolist() for row in range(len(rows))]
    assert found == expected
    assert window.columns.shape[1] == max(map(len, expected))
    states = torch.randn(len(rows), length, 3)
    kept = torch.zeros_like(real)
    for row, columns in enumerate(expected):
        kept[row, columns] = True
    assert torch.equal(window.put_back(window.take(states)), states * kept[..., None])
    assert not window.lacks(kept)
    assert window.lacks(real)


# -- what the model does with it --------------------------------------------------------------------------------------


@torch.no_grad()
def test_generator_receives_the_bridge_states_of_the_last_prompt_tokens():
    model, ids = long_pair(), random_ids(1, LENGTH)
    known = model.read(ids)
    embeddings = model._embed_response(ids)
    z, _ = model.bridge(known.states, visible=VisibleKnowledge(known.mask), embeddings=embeddings, is_prompt=known.mask)
    states = model.generator(inputs_embeds=z[:, -TABLE // 2 :], position_ids=torch.arange(TABLE // 2)[None])
    expected = model._read_out(states.last_hidden_state[:, -1]).logits()
    torch.testing.assert_close(last_logits(model, ids), expected, atol=1e-4, rtol=1e-4)


def test_every_prompt_token_is_read_however_far_back():
    model, ids = long_pair(taps=[0]), random_ids(1, LENGTH)  # tap 0: no other state carries a changed word along
    before = last_logits(model, ids)
    for column in (0, 30, LENGTH - TABLE // 2 - 1):
        changed = ids.clone()
        changed[0, column] = 3 + (ids[0, column] - 2) % (VOCAB - 3)
        assert not torch.allclose(last_logits(model, changed), before, atol=1e-6)


@pytest.mark.parametrize("choices", [{}, {"start": "identity"}, {"generator_window": 5}], ids=str)
def test_cached_equals_uncached_beyond_the_table(choices):
    model, ids = long_pair(**choices), random_ids(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    kwargs = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **kwargs), model.generate(ids, use_cache=False, **kwargs))


@pytest.mark.parametrize("num_prompt", [6, 14, 70])
def test_batched_equals_single_and_left_padding_equals_none(num_prompt):
    model, ids = long_pair(), random_ids(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[1, : LENGTH - num_prompt] = 0
    both = last_logits(model, ids, mask)
    torch.testing.assert_close(both[0], last_logits(model, ids[:1])[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1], last_logits(model, ids[1:, -num_prompt:])[0], atol=1e-4, rtol=1e-4)


def test_cached_logits_of_a_response_equal_those_of_one_forward():
    model, ids, prompt_len = long_pair(), random_ids(2, LENGTH), LENGTH - 6
    prompts = (torch.arange(LENGTH) < prompt_len).expand(2, -1)
    with torch.no_grad():
        whole = model(ids, prompt_mask=prompts, logits_to_keep=7).logits
        step = model(ids[:, :prompt_len], use_cache=True, logits_to_keep=1)
        found = [step.logits]
        for column in range(prompt_len, LENGTH):
            step = model(
                ids[:, column : column + 1],
                attention_mask=torch.ones(2, column + 1, dtype=torch.long),
                past_key_values=step.past_key_values,
                use_cache=True,
            )
            found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_beams_and_several_answers_work_beyond_the_table():
    model, ids = long_pair(), random_ids(2, LENGTH)
    kwargs = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "eos_token_id": None}
    written, again = model.generate(ids, **kwargs), model.generate(ids, use_cache=False, **kwargs)
    assert written.shape == (4, LENGTH + 5)
    assert torch.equal(written, again)


def test_a_window_as_long_as_the_prompt_changes_nothing():
    ids = random_ids(2, 9)
    narrow, wide = (long_pair(generator_window=size) for size in (9, 20))
    assert torch.equal(last_logits(narrow, ids), last_logits(wide, ids))


def test_rotary_generators_take_the_whole_prompt_unless_a_window_is_asked_for():
    def rotary():  # a configuration belongs to one model
        return tiny_source_config(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)

    assert tiny_pair(generator=rotary())._window_size is None
    assert tiny_pair(generator=rotary(), generator_window=7)._window_size == 7


def test_training_reaches_every_parameter_with_ragged_prompts_beyond_the_table():
    model, ids = long_pair(taps=[0, -1]).train(), random_ids(3, LENGTH)
    labels = torch.full_like(ids, -100)
    mask = torch.ones_like(ids)
    for row, (prompt_len, end) in enumerate([(80, 90), (5, 12), (40, 51)]):
        labels[row, prompt_len:end] = ids[row, prompt_len:end]
        mask[row, end:] = 0
    loss = model(ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    singles = []
    for row in range(3):
        part = slice(row, row + 1), slice(int(mask[row].sum()))
        with torch.no_grad():
            singles.append(model(ids[part], labels=labels[part]).loss * (labels[row] > 0).sum())
    torch.testing.assert_close(loss.detach(), sum(singles) / (labels > 0).sum(), atol=1e-4, rtol=1e-4)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_loss_and_logits_before_the_window_are_refused():
    model, ids = long_pair(), random_ids(1, LENGTH)
    with pytest.raises(UserError, match="logits are wanted at prompt tokens before the last 12"):
        model(ids)
    labels = ids.clone()
    prompts = (torch.arange(LENGTH) < 80)[None]
    with pytest.raises(UserError, match="labels are wanted at prompt tokens before the last 12.*on the response only"):
        model(ids, labels=labels, prompt_mask=prompts)


def test_a_response_beyond_the_table_is_refused_before_it_is_written():
    model, ids = long_pair(), random_ids(1, LENGTH)
    assert model.generate(ids, max_new_tokens=TABLE // 2, eos_token_id=None).shape[1] == LENGTH + TABLE // 2
    with pytest.raises(UserError, match=f"need {TABLE + 1} positions, the generator has {TABLE}"):
        model.generate(ids, max_new_tokens=TABLE // 2 + 2, eos_token_id=None)  # the last token takes no position


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_a_prompt_beyond_the_source_is_refused(visibility):
    model = tiny_pair(
        source=tiny_source_config(max_position_embeddings=40),
        generator=tiny_generator_config(max_position_embeddings=64),
        visibility=visibility,
    )
    assert last_logits(model, random_ids(1, 40)).shape == (1, VOCAB)
    for call in (model.read, lambda ids: model.generate(ids, max_new_tokens=2)):
        with pytest.raises(UserError, match="4[12] tokens are more than the source's 40 positions; shorten the prompt"):
            call(random_ids(1, 41))
    with pytest.raises(UserError, match="41 tokens are more than the source's 40 positions"):
        model.check_room(41, 0)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"generator_window": 24}, "leaves no room for a response in the generator's 24 positions"),
        ({"generator_window": 0}, "must be at least 1"),
        ({"generator_window": 8, "visibility": "causal"}, "goes with visibility='prompt'"),
    ],
    ids=str,
)
def test_windows_that_cannot_be_are_refused(choices, message):
    with pytest.raises(UserError, match=message):
        long_pair(**choices)


def test_a_changed_window_is_noticed_on_loading(tmp_path):
    model = long_pair(generator_window=9)
    model.save_pretrained(tmp_path / "pair")
    config = json.loads((tmp_path / "pair" / "config.json").read_text())
    assert config["generator_window"] == 9
    (tmp_path / "pair" / "config.json").write_text(json.dumps(config | {"generator_window": 5}))
    with pytest.raises(UserError, match="is not what was saved"):
        CombinedModel.from_pretrained(tmp_path / "pair", source=model.source)


# -- the claim: a needle anywhere is found ----------------------------------------------------------------------------

HAYSTACK, FIGURES = 400, range(57, VOCAB)  # tokens of a prompt; the ids that answer


def needles(num, seed, length=HAYSTACK):
    """Prompts of random words, one of them a figure, which is the answer; and its depth, 0 to 1."""
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.randint(3, FIGURES.start, (num, length), generator=draw)
    answers = torch.randint(FIGURES.start, FIGURES.stop, (num,), generator=draw)
    places = torch.randint(0, length - 1, (num,), generator=draw)
    prompts[torch.arange(num), places] = answers
    return prompts, answers, places / length


def test_a_needle_at_any_depth_of_a_long_prompt_is_answered():
    torch.manual_seed(0)
    generator = tiny_generator_config(hidden_size=48, max_position_embeddings=TABLE)
    model = tiny_pair(source=tiny_source_config(hidden_size=48), generator=generator, taps=[0], num_heads=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = 500
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in range(steps):
        prompts, answers, _ = needles(16, seed=step, length=(60, 120, HAYSTACK // 2, 60)[step % 4])
        ids = torch.cat([prompts, answers[:, None]], dim=1)
        labels = torch.full_like(ids, -100)
        labels[:, -1] = answers
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    prompts, answers, depth = needles(300, seed=10_000)
    right = model.eval().generate(prompts, max_new_tokens=1, do_sample=False)[:, -1] == answers
    in_window = depth > 1 - TABLE / 2 / HAYSTACK
    assert in_window.float().mean() < 0.06  # nearly all lie where the generator does not look
    assert right.float().mean() >= 0.95
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):  # chance is 0.1
        here = (depth >= low) & (depth < low + 0.2)
        assert right[here].float().mean() >= 0.9, f"depth {low:.0%} to {low + 0.2:.0%}"
