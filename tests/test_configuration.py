"""The configuration: round trip, defaults, and every combination that is refused."""

import copy

import pytest
from transformers import AutoConfig, GPTNeoConfig, LlamaConfig

from llm_modules import CombinedConfig, UserError
from tests.conftest import D_GENERATOR, D_SOURCE, SOURCE_LAYERS, VOCAB, tiny_generator_config, tiny_source_config


def config(**choices):
    return CombinedConfig(
        source=tiny_source_config(), generator=tiny_generator_config(), **({"num_heads": 2} | choices)
    )


def test_sizes_come_from_the_two_halves():
    made = config()
    assert (made.d_source, made.d_generator, made.vocab_size) == (D_SOURCE, D_GENERATOR, VOCAB)
    assert made.num_source_layers == SOURCE_LAYERS
    assert made.get_text_config() is made.generator


def test_defaults_are_the_written_ones():
    made = config(num_heads=8)
    assert (made.visibility, made.head, made.start, made.taps) == ("prompt", "source", "published", [SOURCE_LAYERS])
    assert (made.num_bridge_layers, made.num_heads, made.d_adapter, made.dropout) == (1, 8, 256, 0.1)
    assert CombinedConfig(source=tiny_source_config(), generator=tiny_generator_config()).to_dict() == made.to_dict()


@pytest.mark.parametrize(
    ("choices", "start"),
    [
        ({"visibility": "causal", "head": "source"}, "identity"),
        ({"visibility": "causal", "head": "source", "taps": [0, -1]}, "identity"),
        ({"visibility": "causal", "head": "source", "taps": [0, 1]}, "published"),
        ({"visibility": "causal", "head": "new"}, "published"),
        ({"visibility": "prompt", "head": "source"}, "published"),
        ({"visibility": "bidirectional", "head": "source"}, "published"),
    ],
    ids=str,
)
def test_start_is_identity_where_it_holds_everywhere(choices, start):
    assert config(**choices).start == start


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"visibility": "causal", "taps": [0, -1]},
        {"head": "new", "dropout": 0.0},
        {"placement": "interleaved", "num_bridge_layers": 2, "gate_start": 0.3, "pre_projection": False},
    ],
    ids=str,
)
def test_round_trip_through_dict_and_folder_changes_nothing(choices, tmp_path):
    made = config(source_id="somewhere", source_fingerprint="abc", **choices)
    assert CombinedConfig.from_dict(made.to_dict()).to_dict() == made.to_dict()
    made.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, CombinedConfig)
    assert isinstance(loaded.source, LlamaConfig) and isinstance(loaded.generator, GPTNeoConfig)
    assert loaded.to_dict() | {"_name_or_path": ""} == made.to_dict()
    assert copy.deepcopy(made).to_dict() == made.to_dict()


@pytest.mark.parametrize(
    ("choices", "in_front", "inside"),
    [
        ({}, 1, 0),
        ({"num_bridge_layers": 0}, 0, 0),
        ({"placement": "interleaved"}, 0, 5),
        ({"placement": "interleaved", "interleave_every": 2}, 0, 2),
        ({"placement": "interleaved", "interleave_every": 5, "num_bridge_layers": 3}, 3, 1),
    ],
    ids=str,
)
def test_layers_stand_in_front_or_inside(choices, in_front, inside):
    generator = tiny_generator_config(num_layers=5, attention_types=[[["global"], 5]])
    made = CombinedConfig(source=tiny_source_config(), generator=generator, num_heads=2, **choices)
    assert (made.num_bridge_layers, made.num_interleaved_layers) == (in_front, inside)
    assert made.num_cross_attention_layers == in_front + inside


def test_halves_may_be_dicts():
    halves = {"source": tiny_source_config().to_dict(), "generator": tiny_generator_config().to_dict()}
    made = CombinedConfig(**halves, num_heads=2)
    assert isinstance(made.source, LlamaConfig) and isinstance(made.generator, GPTNeoConfig)
    assert (made.d_source, made.d_generator) == (D_SOURCE, D_GENERATOR)


@pytest.mark.parametrize(
    ("taps", "resolved"),
    [(None, [3]), ([-1], [3]), ([3], [3]), ([-1, 0], [0, 3]), ([2, -3], [1, 2]), ([0, 1, 2, 3], [0, 1, 2, 3])],
    ids=str,
)
def test_taps_are_resolved_and_sorted(taps, resolved):
    made = config(taps=taps)
    assert made.taps == resolved
    assert made.reads_final_state == (3 in resolved)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"visibility": "block"}, "visibility='block' is planned for a later version; use 'prompt' or 'causal'"),
        ({"visibility": "future"}, "visibility='future' is not known; choose one of prompt, causal, bidirectional"),
        ({"head": "both"}, "head='both' is not known; choose one of source, new"),
        ({"start": "warm"}, "start='warm' is not known; choose one of published, identity"),
        ({"start": "identity", "head": "new"}, "start='identity' needs head='source' .* use head='source' or start="),
        ({"start": "identity", "taps": [0, 1]}, "not among taps=\\[0, 1\\]; add -1 to taps or use start='published'"),
        ({"taps": []}, "taps=\\[\\] must name different layers of the source, 0 \\(embeddings\\) to 3 "),
        ({"taps": [4]}, "taps=\\[4\\] must name different layers"),
        ({"taps": [-5]}, "taps=\\[-5\\] must name different layers"),
        ({"taps": [3, -1]}, "taps=\\[3, -1\\] must name different layers"),
        ({"num_heads": 3}, "d_generator=16 is not divisible by num_heads=3; choose one of 1, 2, 4, 8, 16"),
        ({"num_heads": 0}, "d_generator=16 is not divisible by num_heads=0; choose one of 1, 2, 4, 8, 16"),
        ({"num_bridge_layers": -1}, "num_bridge_layers=-1 must be at least 0"),
        ({"d_adapter": 0}, "d_adapter=0 must be at least 1"),
        ({"placement": "behind"}, "placement='behind' is not known; choose one of front, interleaved"),
        ({"interleave_every": 2}, "interleave_every=2 goes with placement='interleaved', and placement is 'front'; "),
        ({"placement": "interleaved", "interleave_every": 3}, "interleave_every=3 must be 1 to 2, the blocks of the"),
        ({"placement": "interleaved", "interleave_every": 0}, "interleave_every=0 must be 1 to 2, the blocks of the"),
        ({"gate_start": 0.0}, "gate_start=0.0 must lie between 0 and 1; choose for example 0.5"),
        ({"gate_start": 1}, "gate_start=1 must lie between 0 and 1"),
        ({"num_bridge_layers": 0, "generator_window": 4}, "generator_window=4 leaves prompt tokens to cross-attention"),
        ({"dropout": 1.0}, "dropout=1.0 must be in \\[0, 1\\)"),
        ({"dropout": -0.1}, "dropout=-0.1 must be in \\[0, 1\\)"),
    ],
    ids=str,
)
def test_what_cannot_hold_is_refused_with_the_way_out(choices, message):
    with pytest.raises(UserError, match=message):
        config(**choices)
