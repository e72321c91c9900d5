"""Nothing is cut or lost silently; batches are padded on the right and carry loss where they should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_modules.data.dataset import Collator, check_ids, padding_id, prepare, split
from llm_modules.data.templates import Example, with_template
from llm_modules.errors import UserError
from llm_modules.loss import IGNORED

PAD = 0
IDS = st.lists(st.integers(1, 96), min_size=1, max_size=9)
EXAMPLES = st.lists(st.builds(Example, IDS, IDS), min_size=1, max_size=5)


def conversation(question, *answers):
    turns = []
    for answer in answers:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def test_prepare_counts_what_it_leaves_out(tokenizer):
    lines = []
    conversations = [conversation("1 + 1?", "2"), conversation("1 + 2?", "3", "3"), conversation("long " * 50, "x")]
    examples, left_out = prepare(
        conversations, with_template(tokenizer, "plain"), max_length=40, vocab_size=49152, report=lines.append
    )
    assert (len(examples), left_out.kept, left_out.too_long, left_out.total) == (3, 3, 1, 4)
    assert lines == ["kept 3 of 4 examples; left out 1: 1 longer than max_length=40 tokens (longest 62)"]


def test_prepare_says_so_when_nothing_is_left_out(tokenizer, capsys):
    prepare([conversation("a", "b")], with_template(tokenizer, "chat"), max_length=512, vocab_size=49152)
    assert capsys.readouterr().out == "kept 1 of 1 examples\n"


def test_prepare_never_cuts_an_example(tokenizer):
    conversations = [conversation("word " * n, "y") for n in range(1, 30)]
    whole, _ = prepare(conversations, with_template(tokenizer, "plain"), max_length=1000, vocab_size=49152)
    kept, _ = prepare(conversations, with_template(tokenizer, "plain"), max_length=25, vocab_size=49152)
    assert [e.input_ids for e in kept] == [e.input_ids for e in whole if len(e) <= 25]


def test_prepare_cuts_only_when_asked_and_counts_it(tokenizer):
    lines = []
    conversations = [conversation("1 + 1?", "2"), conversation("1 + 2?", "3 " * 40), conversation("long " * 30, "x")]
    examples, left_out = prepare(
        conversations,
        with_template(tokenizer, "plain"),
        max_length=200,
        cut_to=24,
        vocab_size=49152,
        report=lines.append,
    )
    assert [len(example) for example in examples] == [len(examples[0]), 24]
    assert len(examples[0]) < 24 and left_out.cut == 1
    assert lines[0].startswith("kept 2 of 3 examples; left out 1:") and lines[0].endswith("; cut 1 to 24 tokens")


def test_response_that_the_template_drops_has_no_trainable_token(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[0].content }}")
    with pytest.raises(UserError, match="no trainable token after masking: kept 0 of 1.*no token to learn"):
        prepare([conversation("a", "b")], with_template(tokenizer, "chat"), max_length=512, vocab_size=49152)


def test_prepare_refuses_to_end_with_nothing(tokenizer):
    with pytest.raises(UserError, match="no trainable token.*longer than max_length=2"):
        prepare([conversation("a", "b")], with_template(tokenizer, "chat"), max_length=2, vocab_size=49152)


def test_id_beyond_the_source_is_named_with_its_token(tokenizer):
    with pytest.raises(UserError, match=r"token 'Ġsum' has id \d+, and the source's vocabulary ends at 99"):
        check_ids(tokenizer(" sum")["input_ids"], tokenizer, vocab_size=100)
    with pytest.raises(UserError, match="vocabulary ends at 99"):
        prepare([conversation("a sum", "b")], with_template(tokenizer, "plain"), max_length=99, vocab_size=100)


def test_source_table_padded_beyond_the_tokenizer_is_fine(tokenizer):
    examples, _ = prepare([conversation("a", "b")], with_template(tokenizer, "chat"), max_length=99, vocab_size=50000)
    assert len(examples) == 1


def test_padding_id_is_one_that_the_source_has(tokenizer):
    assert padding_id(tokenizer, vocab_size=49152) == tokenizer.pad_token_id
    assert padding_id(tokenizer, vocab_size=1) == 0


@given(st.integers(2, 60), st.floats(0, 0.5), st.integers(0, 5))
def test_split_divides_by_seed_without_loss(n, fraction, seed):
    items = list(range(n))
    training, validation = split(items, fraction, seed)
    assert sorted(training + validation) == items
    assert (training, validation) == split(items, fraction, seed)
    assert training
    assert bool(validation) == (fraction > 0)
    assert abs(len(validation) - n * fraction) <= 1


def test_split_differs_between_seeds():
    assert split(range(100), 0.1, 0) != split(range(100), 0.1, 1)


@pytest.mark.parametrize(("n", "fraction"), [(10, 1.0), (10, -0.1), (1, 0.5), (10, 0.99)])
def test_split_that_leaves_nothing_is_refused(n, fraction):
    with pytest.raises(UserError, match="validation_fraction="):
        split(range(n), fraction, 0)


@pytest.mark.parametrize("loss_on", ["response", "all"])
@given(examples=EXAMPLES)
def test_collator_pads_right_and_masks(loss_on, examples):
    batch = Collator(PAD, loss_on)(examples)
    longest = max(map(len, examples))
    for name, values in batch.items():
        assert values.shape == (len(examples), longest), name
    for row, example in enumerate(examples):
        n, p = len(example), len(example.prompt_ids)
        assert batch["input_ids"][row].tolist() == example.input_ids + [PAD] * (longest - n)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (longest - n)
        assert batch["prompt_mask"][row].tolist() == [True] * p + [False] * (longest - p)
        masked = p if loss_on == "response" else 0
        expected = [IGNORED] * masked + example.input_ids[masked:] + [IGNORED] * (longest - n)
        assert batch["labels"][row].tolist() == expected


def test_collator_pads_knowledge_of_unequal_length():
    examples = [Example([1] * n, [2], knowledge=torch.randn(n, 3, 7)) for n in (5, 2)]
    batch = Collator(PAD)(examples)
    assert batch["knowledge_states"].shape == (2, 5, 3, 7)
    assert batch["knowledge_mask"].tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    assert torch.equal(batch["knowledge_states"][1, :2], examples[1].knowledge)
    assert not batch["knowledge_states"][1, 2:].any()


def test_collator_refuses_knowledge_of_only_some_examples():
    with pytest.raises(ValueError, match="1 of 2 examples lack knowledge"):
        Collator(PAD)([Example([1], [2], torch.randn(1, 3, 7)), Example([1], [2])])


def test_collator_refuses_a_batch_without_a_trainable_token():
    with pytest.raises(UserError, match="no trainable token after masking"):
        Collator(PAD)([Example([1, 2, 3], [])])
