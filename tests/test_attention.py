"""Enhanced Cross-Attention: parity with torch's attention, gates, masks and chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm_modules import EnhancedCrossAttention, UserError, VisibleKnowledge, attention

BATCH, QUERIES, KEYS, D_GENERATOR, D_KNOWLEDGE, HEADS, D_ADAPTER = 2, 5, 7, 12, 9, 3, 4


def layer(**changes):
    torch.manual_seed(0)
    made = EnhancedCrossAttention(D_GENERATOR, D_KNOWLEDGE, num_heads=HEADS, d_adapter=D_ADAPTER, **changes).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def set_gate_(made, *, is_open):
    nn.init.zeros_(made.gate.weight)
    nn.init.constant_(made.gate.bias, 1e4 if is_open else -1e4)
    return made


def silence_adapter_(made):
    """The adapter then passes its input on unchanged: only its residual is left."""
    nn.init.zeros_(made.adapter.norm.weight)
    nn.init.zeros_(made.adapter.norm.bias)
    return made


def inputs(queries=QUERIES, keys=KEYS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(BATCH, queries, D_GENERATOR, generator=generator),
        torch.randn(BATCH, keys, D_KNOWLEDGE, generator=generator),
    )


def torch_attention(made):
    """torch's own multi-head attention with the same weights."""
    twin = nn.MultiheadAttention(D_GENERATOR, HEADS, kdim=D_KNOWLEDGE, vdim=D_KNOWLEDGE, batch_first=True).eval()
    with torch.no_grad():
        twin.q_proj_weight.copy_(made.query.weight)
        twin.k_proj_weight.copy_(made.key.weight)
        twin.v_proj_weight.copy_(made.value.weight)
        twin.in_proj_bias.copy_(torch.cat([made.query.bias, made.key.bias, made.value.bias]))
        twin.out_proj.load_state_dict(made.output.state_dict())
    return twin


@pytest.mark.parametrize("masked", ["nothing", "padding", "future", "both"])
def test_attention_equals_torch_multi_head_attention(masked):
    made = silence_adapter_(set_gate_(layer(), is_open=True))
    queries, knowledge = inputs()
    mask = torch.ones(BATCH, KEYS, dtype=torch.bool)
    if masked in ("padding", "both"):
        mask[0, -2:] = False
        mask[1, 3] = False
    visible = VisibleKnowledge(mask, bidirectional=masked in ("nothing", "padding"))
    hidden = ~(torch.arange(KEYS) <= torch.arange(QUERIES)[:, None]) if masked in ("future", "both") else None
    normed = made.knowledge_norm(knowledge)
    expected, _ = torch_attention(made)(
        made.query_norm(queries), normed, normed, key_padding_mask=~mask, attn_mask=hidden, need_weights=False
    )
    torch.testing.assert_close(made(queries, knowledge=knowledge, visible=visible), expected, atol=1e-5, rtol=0)


def test_without_a_mask_all_queries_read_everything():
    made = layer()
    queries, knowledge = inputs()
    everything = VisibleKnowledge(torch.ones(BATCH, KEYS, dtype=torch.bool), bidirectional=True)
    torch.testing.assert_close(
        made(queries, knowledge=knowledge), made(queries, knowledge=knowledge, visible=everything)
    )


def test_closed_gate_returns_queries_unchanged():
    queries, knowledge = inputs()
    assert torch.equal(set_gate_(layer(), is_open=False)(queries, knowledge=knowledge), queries)


def test_open_gate_returns_adapted_attention():
    queries, knowledge = inputs()
    made = set_gate_(layer(), is_open=True)
    plain = silence_adapter_(set_gate_(layer(), is_open=True))(queries, knowledge=knowledge)
    adapted = made.adapter.norm(made.adapter.up(nn.functional.gelu(made.adapter.down(plain)))) + plain
    torch.testing.assert_close(made(queries, knowledge=knowledge), adapted, atol=1e-5, rtol=0)


def test_half_open_gate_mixes_both():
    made = layer()
    queries, knowledge = inputs()
    nn.init.zeros_(made.gate.weight)
    nn.init.zeros_(made.gate.bias)
    half = made(queries, knowledge=knowledge)
    adapted = set_gate_(made, is_open=True)(queries, knowledge=knowledge)
    torch.testing.assert_close(half, (queries + adapted) / 2, atol=1e-5, rtol=0)


def test_a_query_that_may_read_nothing_attends_to_zeros_with_finite_gradients():
    made = silence_adapter_(set_gate_(layer(), is_open=True))
    queries, knowledge = (tensor.requires_grad_() for tensor in inputs())
    mask = torch.ones(BATCH, KEYS, dtype=torch.bool)
    mask[0, :2] = False  # columns 0 and 1 of row 0 see neither themselves nor anything before
    attended = made(queries, knowledge=knowledge, visible=VisibleKnowledge(mask))
    torch.testing.assert_close(attended[0, :2], made.output.bias.expand(2, -1))
    assert not torch.allclose(attended[0, 2], made.output.bias, atol=1e-3)
    attended.square().sum().backward()
    for tensor in (queries, knowledge, *made.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()
    assert not knowledge.grad[0, :2].any()
    assert knowledge.grad[1].any()


@pytest.mark.parametrize("chunk", [1, 2, 3, QUERIES])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_queries_in_chunks_equal_queries_at_once(monkeypatch, chunk, bidirectional):
    made = layer()
    queries, knowledge = inputs()
    mask = torch.ones(BATCH, KEYS, dtype=torch.bool)
    mask[1, 0] = False
    visible = VisibleKnowledge(mask, first_query=1, bidirectional=bidirectional)
    whole = made(queries, knowledge=knowledge, visible=visible)
    monkeypatch.setattr(attention, "QUERY_CHUNK", chunk)
    torch.testing.assert_close(made(queries, knowledge=knowledge, visible=visible), whole, atol=1e-6, rtol=0)


def test_projected_once_equals_projected_in_the_call():
    made = layer()
    queries, knowledge = inputs()
    keys, values = made.project(knowledge)
    assert keys.shape == values.shape == (BATCH, HEADS, KEYS, D_GENERATOR // HEADS)
    assert torch.equal(made(queries, keys_values=(keys, values)), made(queries, knowledge=knowledge))


def test_dropout_acts_while_training_only():
    made = layer(dropout=0.5)
    queries, knowledge = inputs()
    assert torch.equal(made(queries, knowledge=knowledge), made(queries, knowledge=knowledge))
    made.train()
    assert not torch.equal(made(queries, knowledge=knowledge), made(queries, knowledge=knowledge))


@pytest.mark.parametrize("heads", [5, 0, -1])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(UserError, match=f"d_generator=12 is not divisible by num_heads={heads}; choose "):
        EnhancedCrossAttention(D_GENERATOR, D_KNOWLEDGE, num_heads=heads)


# -- the visibility rule -----------------------------------------------------------------------------------------------


@st.composite
def rules(draw):
    keys = draw(st.integers(1, 9))
    row = st.lists(st.booleans(), min_size=keys, max_size=keys)
    mask = torch.tensor(draw(st.lists(row, min_size=1, max_size=3)))
    return VisibleKnowledge(mask, first_query=draw(st.integers(0, 9)), bidirectional=draw(st.booleans()))


@settings(max_examples=60)
@given(rule=rules(), start=st.integers(0, 6), length=st.integers(1, 6))
def test_a_query_reads_marked_knowledge_that_is_not_in_its_future(rule, start, length):
    rendered = rule.render(start, start + length)
    batch, keys = rule.mask.shape
    assert rendered.shape == (batch, 1, length, keys)
    assert rendered.dtype == torch.bool
    for row in range(batch):
        for query in range(length):
            column = rule.first_query + start + query
            for key in range(keys):
                allowed = bool(rule.mask[row, key]) and (rule.bidirectional or key <= column)
                assert bool(rendered[row, 0, query, key]) == allowed


@settings(max_examples=30)
@given(rule=rules(), cut=st.integers(1, 5))
def test_masks_rendered_in_parts_are_the_mask_rendered_whole(rule, cut):
    parts = torch.cat([rule.render(0, cut), rule.render(cut, 6)], dim=2)
    assert torch.equal(parts, rule.render(0, 6))


@settings(max_examples=30)
@given(rule=rules(), steps=st.integers(0, 5))
def test_a_later_first_query_renders_the_later_rows(rule, steps):
    later = VisibleKnowledge(rule.mask, first_query=rule.first_query + steps, bidirectional=rule.bidirectional)
    assert torch.equal(later.render(0, 3), rule.render(steps, steps + 3))


@settings(max_examples=60)
@given(rule=rules(), stop=st.integers(1, 6))
def test_columns_beyond_those_counted_are_read_by_no_query_before(rule, stop):
    assert not rule.render(0, stop)[..., rule.num_columns(stop) :].any()


def test_only_columns_that_can_be_read_are_counted():
    rule = VisibleKnowledge(torch.ones(1, 9, dtype=torch.bool), first_query=2)
    assert [rule.num_columns(stop) for stop in (1, 3, 7, 8)] == [3, 5, 9, 9]
    assert VisibleKnowledge(rule.mask, bidirectional=True).num_columns(1) == 9


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, QUERIES - 1), st.integers(-3, KEYS - 1))
def test_weights_are_those_that_forward_attends_with(seed, start, first_query):
    made = silence_adapter_(set_gate_(layer(), is_open=True))
    queries, knowledge = inputs(seed=seed)
    mask = torch.rand(BATCH, KEYS, generator=torch.Generator().manual_seed(seed)) < 0.7
    visible = VisibleKnowledge(mask, first_query=first_query)
    keys, values = made.project(knowledge)
    with torch.no_grad():
        weights = made.weights(queries, keys=keys, visible=visible, start=start)
        attended = made.output((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attended, made(queries, knowledge=knowledge, visible=visible)[:, start:])
    allowed = visible.render(start, QUERIES).expand_as(weights)
    assert not weights[~allowed].any()
    assert torch.allclose(weights.sum(-1), allowed.any(-1).float())


def test_weights_without_a_mask_read_everything():
    made = layer()
    queries, knowledge = inputs()
    weights = made.weights(queries, keys=made.project(knowledge)[0])
    assert weights.shape == (BATCH, HEADS, QUERIES, KEYS) and (weights > 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones(()))
