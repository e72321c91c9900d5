"""What one source said is shared by requests and by modules: read once, and nothing else changes."""

import pytest
import torch

from llm_modules import CombinedModel, Source, UserError
from llm_modules.shared_reading import SharedReading
from tests.conftest import random_ids, randomise_, tiny_generator_config, tiny_pair, tiny_source_config

SYSTEM, QUESTION = random_ids(1, 9)[0].tolist(), random_ids(3, 5).tolist()


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    return Source.of(tiny_source_config())


def pair_on(source, **choices):
    return randomise_(CombinedModel.from_modules(source, tiny_generator_config(), num_heads=4, **choices)).eval()


def answer(model, **arguments):
    return model.generate(**arguments, max_new_tokens=6, do_sample=False, eos_token_id=None)


@pytest.mark.parametrize(
    "choices",
    [{"visibility": "prompt"}, {"visibility": "prompt", "taps": [0, 2]}, {"visibility": "causal"}],
    ids=str,
)
def test_answers_are_those_without_sharing(source, choices):
    model, shared = pair_on(source, **choices), SharedReading(source)
    for question in QUESTION:
        ids = SYSTEM + question
        for _ in range(2):  # a known prompt, too
            given = shared.begin(model, ids)
            assert torch.equal(answer(model, **given), answer(model, inputs=torch.tensor([ids])))


def test_a_beginning_is_read_once(source):
    model, shared = pair_on(source, visibility="prompt"), SharedReading(source)
    for question in (*QUESTION, QUESTION[0]):
        shared.begin(model, SYSTEM + question)
    beyond = [question[_common(question, QUESTION[:number]) :] for number, question in enumerate(QUESTION)]
    assert shared.num_read == len(SYSTEM) + sum(map(len, beyond))


def _common(question, before):
    counts = [next((i for i, (a, b) in enumerate(zip(one, question, strict=True)) if a != b), 5) for one in before]
    return max(counts, default=0)


def test_modules_with_other_taps_and_visibilities_share(source):
    models = [pair_on(source, visibility="prompt", taps=[0, 2]), pair_on(source, visibility="causal")]
    shared, ids = SharedReading(source), SYSTEM + QUESTION[0]
    for model in models:
        shared.begin(model, ids)  # the second wants a tap that was not kept: read again, with both
    read = shared.num_read
    for model in models:
        assert torch.equal(answer(model, **shared.begin(model, ids)), answer(model, inputs=torch.tensor([ids])))
    assert shared.num_read == read == 2 * len(ids)


def test_module_with_low_taps_pays_for_no_others(source):
    low, high = pair_on(source, visibility="causal", taps=[0, 1]), pair_on(source, visibility="causal")
    shared, ids, longer = SharedReading(source), SYSTEM, SYSTEM + QUESTION[1]
    other = random_ids(1, 6, seed=8)[0].tolist()
    shared.begin(high, ids)
    shared.begin(low, other)
    assert shared._known[tuple(other)].taps == (0, 1) and shared.nbytes > 0
    for model in (low, high, low):  # each reads the same text again at most once, and never again
        given = shared.begin(model, ids)
        assert torch.equal(answer(model, **given), answer(model, inputs=torch.tensor([ids])))
    assert shared.num_read == 2 * len(ids) + len(other)
    given = shared.begin(low, longer)  # goes on from what was read higher up
    assert shared._known[tuple(longer)].taps == (0, 1)
    assert shared.num_read == 2 * len(ids) + len(other) + len(QUESTION[1])
    assert torch.equal(answer(low, **given), answer(low, inputs=torch.tensor([longer])))


def test_source_itself_goes_on_from_what_modules_had_read(source):
    model, shared = pair_on(source, visibility="causal"), SharedReading(source)
    shared.begin(model, SYSTEM)
    state, cache = shared.begin_source(SYSTEM + QUESTION[0])
    assert shared.num_read == len(SYSTEM) + len(QUESTION[0])
    ids = torch.tensor([SYSTEM + QUESTION[0]])
    read = source.read(ids, attention_mask=torch.ones_like(ids), taps=[3])
    torch.testing.assert_close(state, read[:, -1, 0], atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == ids.shape[1]
    cache.crop(-2)
    assert shared.begin_source(SYSTEM + QUESTION[0])[1].get_seq_length() == ids.shape[1]  # a copy is handed out


def test_a_shorter_prompt_is_the_beginning_of_a_longer_one(source):
    model, shared = pair_on(source, visibility="causal"), SharedReading(source)
    shared.begin(model, SYSTEM)
    given = shared.begin(model, SYSTEM[:4])
    assert shared.num_read == len(SYSTEM)
    assert torch.equal(answer(model, **given), answer(model, inputs=torch.tensor([SYSTEM[:4]])))


def test_what_was_not_asked_for_longest_is_forgotten(source):
    model, shared = pair_on(source, visibility="prompt"), SharedReading(source, max_tokens=12)
    texts = [[number, *range(3, 8)] for number in (10, 11, 12)]
    for text in texts:
        shared.begin(model, text)
    read = shared.num_read
    shared.begin(model, texts[2])
    assert shared.num_read == read
    shared.begin(model, texts[0])
    assert shared.num_read == read + len(texts[0])


def test_another_source_or_a_leaking_pair_is_refused(source):
    torch.manual_seed(2)
    other = Source.of(tiny_source_config())
    with pytest.raises(UserError, match="one source"):
        SharedReading(other).begin(pair_on(source), SYSTEM)
    with pytest.warns(UserWarning, match="bidirectional"):
        leaking = tiny_pair(visibility="bidirectional")
    with pytest.raises(UserError, match="nothing can be shared"):
        SharedReading(leaking.source).begin(leaking, SYSTEM)
