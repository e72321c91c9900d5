"""The leak test passes what reads no future and catches what does."""

import pytest
import torch

from llm_modules.data.templates import Example
from llm_modules.leak import leak_test
from tests.conftest import random_ids, randomise_, tiny_generator_config, tiny_pair

EXAMPLES = [
    Example(random_ids(1, 4 + seed % 3, seed=seed)[0].tolist(), random_ids(1, 6, seed=seed + 50)[0].tolist())
    for seed in range(8)
]


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
@pytest.mark.parametrize("head", ["source", "new"])
def test_pair_that_reads_no_future_passes(visibility, head):
    found = leak_test(randomise_(tiny_pair(visibility=visibility, head=head)), EXAMPLES, seed=0)
    assert not found.leaks and found.largest_move < 1e-3
    assert found.gained_nats.value == pytest.approx(0, abs=1e-4) and found.num_positions == 8


def test_prompts_longer_than_the_generator_are_tested_too():
    model = randomise_(tiny_pair(generator=tiny_generator_config(max_position_embeddings=12)))
    long = [Example(random_ids(1, 20, seed=seed)[0].tolist(), [5, 6, 7, 2]) for seed in range(3)]
    assert not leak_test(model, long, seed=0).leaks


@pytest.mark.filterwarnings("ignore:visibility='bidirectional'")
def test_bidirectional_is_caught():
    found = leak_test(randomise_(tiny_pair(visibility="bidirectional", head="new")), EXAMPLES, seed=0)
    assert found.leaks and found.largest_move > 0.1
    assert found.as_dict()["leaks"] is True


def test_model_that_says_no_numbers_does_not_pass():
    model = tiny_pair()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    assert leak_test(model, EXAMPLES, seed=0).leaks
