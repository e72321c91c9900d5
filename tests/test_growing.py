"""A cache that grows in place answers as transformers' own, which joins tensors anew for every token."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from llm_modules.growing import GrowingLayer, beginning_of, growing_cache
from tests.conftest import tiny_generator_config

HEADS, WIDTH = 3, 5
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.integers(1, 90)),
        st.tuples(st.just("crop"), st.integers(1, 4)),
        st.tuples(st.just("select"), st.permutations([0, 1])),
        st.tuples(st.just("repeat"), st.just(2)),
        st.tuples(st.just("copy"), st.just(0)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=12,
)


@torch.no_grad()
@given(OPERATIONS)
def test_any_course_of_operations_gives_what_joining_tensors_gives(operations):
    draw = torch.Generator().manual_seed(0)
    layers, rows = (DynamicLayer(), GrowingLayer()), 2
    for name, value in [("update", 2), *operations]:
        if name == "update":
            keys, values = (torch.randn(rows, HEADS, value, WIDTH, generator=draw) for _ in range(2))
            returned = [layer.update(keys, values) for layer in layers]
            torch.testing.assert_close(returned[0], returned[1], atol=0, rtol=0)
        elif name == "crop" and value < layers[0].get_seq_length():
            [layer.crop(-value) for layer in layers]
        elif name == "select":
            [layer.batch_select_indices(torch.tensor(value)) for layer in layers]
            rows = len(value) if layers[0].get_seq_length() else rows
        elif name == "repeat" and rows < 16 and layers[0].get_seq_length():
            [layer.batch_repeat_interleave(value) for layer in layers]
            rows *= value
        elif name == "copy":
            layers = tuple(map(copy.deepcopy, layers))
        elif name == "reset":
            [layer.reset() for layer in layers]
            rows = 2
        assert layers[0].get_seq_length() == layers[1].get_seq_length()
        if layers[0].get_seq_length():
            assert torch.equal(layers[0].keys, layers[1].keys)
            assert torch.equal(layers[0].values, layers[1].values)


@torch.no_grad()
def test_a_token_is_written_into_room_that_is_there():
    layer = GrowingLayer()
    layer.update(*torch.randn(2, 1, HEADS, 100, WIDTH))
    places = set()
    for _ in range(300):
        keys, _ = layer.update(*torch.randn(2, 1, HEADS, 1, WIDTH))
        places.add(keys.data_ptr())
    assert keys.shape[2] == 400
    assert len(places) <= 4  # 100 -> 165 -> 249 -> 375 -> 564: copied when the room was full, and then only


@torch.no_grad()
def test_a_copy_and_its_original_go_separate_ways():
    one = GrowingLayer()
    for _ in range(3):
        one.update(*torch.randn(2, 1, HEADS, 2, WIDTH))
    other, before = copy.deepcopy(one), one.keys.clone()
    new = torch.randn(2, 1, HEADS, 2, WIDTH)
    other.update(*new)
    one.update(*-new)
    assert torch.equal(one.keys[:, :, :6], before)
    assert torch.equal(one.keys[:, :, 6:], -other.keys[:, :, 6:])


def test_gradients_pass_through_what_was_added():
    layer = GrowingLayer()
    first, second = (torch.randn(2, 1, HEADS, 2, WIDTH, requires_grad=True) for _ in range(2))
    layer.update(*first)
    keys, values = layer.update(*second)
    (keys.sum() + values.sum()).backward()
    assert torch.equal(first.grad, torch.ones_like(first))
    assert torch.equal(second.grad, torch.ones_like(second))


def test_sliding_layers_stay_sliding():
    config = tiny_generator_config(attention_types=[[["global", "local"], 1]], num_layers=2)
    plain, growing = DynamicCache(config=config), growing_cache(config)
    assert [type(layer) is GrowingLayer for layer in growing.layers] == [
        type(layer) is DynamicLayer for layer in plain.layers
    ]
    assert not any(isinstance(layer, GrowingLayer) for layer in plain.layers)
    assert {type(layer) for layer in growing.layers} <= {GrowingLayer, DynamicSlidingWindowLayer}


@pytest.mark.parametrize("num_layers", [1, 3])
def test_without_a_config_layers_appear_as_they_are_needed(num_layers):
    cache = growing_cache()
    for layer in range(num_layers):
        cache.update(*torch.randn(2, 1, HEADS, 2, WIDTH), layer)
    assert [type(layer) for layer in cache.layers] == [GrowingLayer] * num_layers


@pytest.mark.parametrize("make", [GrowingLayer, DynamicLayer])
def test_beginning_of_a_layer_is_its_own_and_holds_nothing_else(make):
    layer = make()
    for length in (100, 7):
        layer.update(torch.randn(2, HEADS, length, WIDTH), torch.randn(2, HEADS, length, WIDTH))
    whole = layer.keys.clone()
    first = beginning_of(layer, 5)
    assert torch.equal(first.keys, whole[..., :5, :])
    first.update(torch.zeros(2, HEADS, 3, WIDTH), torch.zeros(2, HEADS, 3, WIDTH))
    assert first.get_seq_length() == 8
    assert torch.equal(layer.keys, whole)
    if make is GrowingLayer:
        assert first.keys.untyped_storage().nbytes() < layer.keys.untyped_storage().nbytes()
