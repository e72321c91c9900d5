"""What one source said is shared by requests and by modules: read once, and nothing else changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralConfig

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


@pytest.fixture
def read_at_once(source, monkeypatch):
    """Rows of each time that the source reads."""
    whole, rows = source.read, []
    monkeypatch.setattr(source, "read", lambda ids, **given: rows.append(len(ids)) or whole(ids, **given))
    return rows


def texts(*lengths, beginning=()):
    """Texts of so many tokens that share a beginning and nothing after it."""
    rest = random_ids(1, sum(lengths), seed=5)[0].tolist()
    return [[*beginning, 3 + number, *rest[:length]] for number, length in enumerate(lengths)]


@pytest.mark.parametrize("choices", [{"visibility": "prompt", "taps": [0, 2]}, {"visibility": "causal"}], ids=str)
@pytest.mark.parametrize("before", [[], SYSTEM + QUESTION[0]], ids=["nothing known", "beginning known"])
def test_prompts_read_side_by_side_are_those_read_alone(source, read_at_once, choices, before):
    model, shared = pair_on(source, **choices), SharedReading(source)
    waiting = texts(6, 5, 7, beginning=SYSTEM)
    if before:
        shared.begin(model, before)
    read_at_once.clear()
    shared.read_together(waiting, model.config.taps)
    expected_tokens = sum(map(len, waiting)) - (3 * len(SYSTEM) if before else 0)
    assert read_at_once == [3] and shared.num_read == len(before) + expected_tokens
    for ids in waiting:
        given = shared.begin(model, ids)
        assert torch.equal(answer(model, **given), answer(model, inputs=torch.tensor([ids])))
    assert shared.num_read == len(before) + expected_tokens


@pytest.mark.parametrize(
    ("waiting", "rows"),
    [
        ([SYSTEM, SYSTEM, SYSTEM], 1),  # read once
        (texts(6, 60), 1),  # mostly padding
        (texts(300, 290), 1),  # too many for those who wait
        (texts(6, 6, 60, 7), 3),  # the others go without it
        (texts(6, 6, beginning=range(3, 43)), 1),  # the second goes on from the first
        (texts(6, 6, beginning=range(3, 12)), 2),  # not worth two readings
    ],
    ids=["the same", "another length", "long", "one of another length", "long beginning", "short beginning"],
)
def test_only_what_gains_is_read_beside_the_first(source, read_at_once, waiting, rows):
    SharedReading(source).read_together(waiting, [3])
    assert read_at_once == [rows]


def test_prompts_that_would_be_forgotten_are_not_read_ahead(source, read_at_once):
    shared = SharedReading(source, max_tokens=20)
    shared.read_together(texts(9, 9, 9), [3])
    assert read_at_once == [2] and len(shared._known) == 2


def test_what_is_known_is_not_read_again(source, read_at_once):
    shared, (one, other) = SharedReading(source), texts(6, 6)
    shared.read_together([one], [3])
    shared.read_together([one, other], [3])
    assert read_at_once == [1]
    shared.read_together([other, one], [3])
    assert read_at_once == [1, 1]


def test_source_with_windows_reads_one_by_one():
    config = MistralConfig(**(tiny_source_config().to_dict() | {"model_type": "mistral", "sliding_window": 4}))
    torch.manual_seed(1)
    shared = SharedReading(Source.of(config))
    shared.read_together(texts(6, 6), [3])
    assert len(shared._known) == 1


@given(st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=24), min_size=1, max_size=8), st.data())
def test_whatever_waits_is_read_as_if_alone(source, waiting, data):
    """Few words, so that beginnings are shared in all ways; with little room, what was read ahead may be forgotten."""
    max_tokens = data.draw(st.sampled_from([30, 1000]))
    shared = SharedReading(source, max_tokens=max_tokens)
    for number, ids in enumerate(waiting):
        shared.read_together(waiting[number:], [0, 3])
        state, cache = shared.begin_source(ids)
        row = torch.tensor([ids])
        alone = source.read(row, attention_mask=torch.ones_like(row), taps=[3])
        torch.testing.assert_close(state, alone[:, -1, 0], atol=1e-4, rtol=1e-4)
        assert cache.get_seq_length() == len(ids)
    assert max_tokens == 30 or shared.num_read <= sum(map(len, waiting))


def test_another_source_or_a_leaking_pair_is_refused(source):
    torch.manual_seed(2)
    other = Source.of(tiny_source_config())
    with pytest.raises(UserError, match="one source"):
        SharedReading(other).begin(pair_on(source), SYSTEM)
    with pytest.warns(UserWarning, match="bidirectional"):
        leaking = tiny_pair(visibility="bidirectional")
    with pytest.raises(UserError, match="nothing can be shared"):
        SharedReading(leaking.source).begin(leaking, SYSTEM)
