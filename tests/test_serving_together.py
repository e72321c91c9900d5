"""Several modules in one step: each row's logits are those that its own module gives alone."""

import random

import pytest
import torch

from llm_modules.serving.speakers import PairSpeaker, SpeakersTogether
from llm_modules.shared_reading import SharedReading
from tests.conftest import random_ids, tiny_pair, tiny_source_config
from tests.test_serving_engine import Heard, alone, engine, job, prompt
from tests.tiny_server import KINDS, tiny_module, tiny_modules, tiny_source

NUM_STEPS = 5


@pytest.fixture(scope="module")
def source():
    return tiny_source()


def speakers_of(source, kind, num):
    """So many modules of a kind, and of equal form; their weights differ."""
    shared = SharedReading(source)
    return [PairSpeaker(tiny_module(source, kind, seed), shared) for seed in range(num)]


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 2, 2), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_modules_stepped_together_have_the_logits_they_have_alone(source, kind, counts):
    speakers = speakers_of(source, kind, len(counts))
    prompts = [random_ids(1, 7 + 5 * row, seed=row)[0].tolist() for row in range(sum(counts))]
    follow = random_ids(len(prompts), NUM_STEPS, seed=9)
    of_row = [speaker for speaker, count in zip(speakers, counts, strict=True) for _ in range(count)]
    expected, joined = [], None
    for speaker, ids, row in zip(of_row, prompts, follow, strict=True):
        rows = speaker.begin(ids)[1]
        expected.append([speaker.step(row[place : place + 1], rows)[0] for place in range(NUM_STEPS)])
        rows = speaker.begin(ids)[1]
        joined = rows if joined is None else joined
        if rows is not joined:
            joined.join_(rows)
    together = SpeakersTogether(speakers)
    for place in range(NUM_STEPS):  # the first as it comes, those after it over stacked weights where rows are equal
        found = together.step(follow[:, place], joined, counts=counts)
        wanted = torch.stack([steps[place] for steps in expected])
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected[0][0], expected[-1][0], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_wiring_that_modules_share_holds_no_copy_of_weights(source, kind):
    (speaker,) = speakers_of(source, kind, 1)
    own = {id(parameter) for parameter in speaker.model.parameters()}
    assert {id(parameter) for parameter in speaker.part.common.parameters()} <= own
    assert speaker.part.common.source is speaker.model.source


def test_modules_are_of_one_form_if_only_their_weights_and_training_differ():
    def form(**choices):
        return PairSpeaker(tiny_pair(**choices), None).form

    assert form() == form(seed=1, dropout=0.5)
    others = [form(), form(num_heads=4), form(taps=[0]), form(head="new"), form(generator=tiny_source_config())]
    assert len(set(others)) == len(others)


def test_generator_of_an_architecture_that_is_not_known_is_stepped_alone(source):
    gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 5}
    one, other = (PairSpeaker(tiny_pair(source=source, generator=gpt2), None) for _ in range(2))
    assert one.form != other.form


def test_answers_of_several_modules_side_by_side_are_those_of_one_forward_over_the_whole_text():
    modules = tiny_modules()
    for seed in range(7, 10):
        for kind in KINDS:
            modules._add(f"{kind}-{seed}", tiny_module(modules.source, kind, seed), modules.source.tokenizer)
    rng, heard = random.Random(0), []
    with engine(max_at_once=64) as running:
        for _ in range(2):
            for module in rng.sample(list(modules), len(list(modules))):
                ids, listener = prompt(rng, module), Heard()
                heard.append((module, ids, listener))
                running.submit(job(module, ids, listener, max_new_tokens=rng.randint(2, 10)))
        most = 0
        while not all(listener.ended.is_set() for _, _, listener in heard):
            now = running.run(lambda: max((len(batch._counts) for batch in running._batches), default=0))
            most = max(most, now.result(60))
        for _, _, listener in heard:
            listener.wait()
    assert most > 1
    for module, ids, listener in heard:
        written = alone(module, ids, listener.num_tokens[0])
        assert listener.texts[0] == module.tokenizer.decode(written, skip_special_tokens=True)
