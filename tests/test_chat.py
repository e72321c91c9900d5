"""A conversation is kept, streamed, and can be stopped without losing it."""

import json
import re
import threading

import pytest
import torch
from transformers import GenerationConfig

from llm_modules import CombinedModel, UserError
from llm_modules.chat import Conversation, Pace, Sampling
from llm_modules.data.records import read_conversations
from llm_modules.data.templates import encode_prompt
from tests.conftest import VOCAB, endless_generator_config, randomise_, tiny_pair, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def endless_pair():
    """A pair with no position table and an end-of-sequence token that is never the likeliest."""
    model = randomise_(tiny_pair(generator=endless_generator_config()))
    model.source.output_matrix[2] = 0
    return model


def conversation(model=None, **sampling):
    return Conversation(model or endless_pair(), TOKENIZER, Sampling(**({"max_new_tokens": 8} | sampling)))


def generated(model, turns, **kwargs):
    ids = torch.tensor([encode_prompt(turns, TOKENIZER)])
    written = model.generate(ids, **({"max_new_tokens": 8, "do_sample": False} | kwargs))
    return TOKENIZER.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_answer_is_streamed_in_pieces_and_kept_with_the_turns():
    model = endless_pair()
    talking = conversation(model)
    pieces = list(talking.ask("1 + 2 ?"))
    assert len([piece for piece in pieces if piece]) > 3
    first = [{"role": "user", "content": "1 + 2 ?"}]
    assert "".join(pieces) == generated(model, first)
    assert talking.turns == [*first, {"role": "assistant", "content": "".join(pieces)}]
    second = [*talking.turns, {"role": "user", "content": "a"}]
    assert "".join(talking.ask("a")) == generated(model, second)
    assert len(talking.turns) == 4


def test_reset_forgets_the_turns_and_keeps_the_system():
    model = endless_pair()
    talking = Conversation(model, TOKENIZER, Sampling(max_new_tokens=8), system="x y")
    alone = "".join(talking.ask("1"))
    "".join(talking.ask("2"))
    talking.reset()
    assert talking.turns == []
    assert "".join(talking.ask("1")) == alone
    system = {"role": "system", "content": "x y"}
    assert alone == generated(model, [system, {"role": "user", "content": "1"}])


def test_answer_that_is_left_half_way_is_kept_and_its_writer_ends():
    talking = conversation(max_new_tokens=5000)
    threads = threading.active_count()
    answer = talking.ask("1")
    said = next(piece for piece in answer if piece)
    answer.close()
    assert threading.active_count() == threads
    assert [turn["role"] for turn in talking.turns] == ["user", "assistant"]
    assert talking.turns[1]["content"] == said
    talking.sampling = Sampling(max_new_tokens=4)
    assert list(talking.ask("2"))


def test_answer_ends_with_the_end_of_sequence():
    model = endless_pair()
    with torch.no_grad():
        model.source.output_matrix.zero_()
        model.source.output_bias = torch.zeros(VOCAB)
        model.source.output_bias[2] = 1
    talking = conversation(model)
    assert "".join(talking.ask("1")) == ""
    assert talking.turns[1]["content"] == ""


@pytest.mark.parametrize("question", ["", "  "])
def test_empty_question_is_refused_and_forgotten(question):
    talking = conversation()
    with pytest.raises(UserError, match="the prompt is empty"):
        list(talking.ask(question))
    assert talking.turns == []


def test_failure_while_writing_reaches_the_reader_and_leaves_the_turns_as_they_were():
    talking = conversation(tiny_pair(), max_new_tokens=500)  # the generator's table has 128 positions
    with pytest.raises(UserError, match="positions, the generator has 128"):
        list(talking.ask("1"))
    assert talking.turns == []


def test_temperature_zero_is_greedy_and_others_sample_as_told():
    assert Sampling(max_new_tokens=3).as_kwargs() == {"max_new_tokens": 3, "do_sample": False}
    sampled = Sampling(max_new_tokens=3, temperature=0.5, top_k=0, top_p=0.9).as_kwargs()
    assert sampled == {"max_new_tokens": 3, "do_sample": True, "temperature": 0.5, "top_k": None, "top_p": 0.9}
    GenerationConfig(**sampled).validate()


def test_sampling_is_decided_by_its_seed(tmp_path, talking_source):
    tiny_pair(source=str(talking_source)).save_pretrained(tmp_path / "model")
    said = [
        "".join(Conversation.load(tmp_path / "model", Sampling(12, temperature=2.0, seed=seed)).ask("1"))
        for seed in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["temperature=-1"], "temperature=-1.0 is not possible; choose 0 or a finite number above it"),
        (["temperature=nan"], "temperature=nan is not possible"),
        (["top_p=2"], "top_p=2.0 is not possible; choose between 0 and 1"),
        (["max_new_tokens=0"], "max_new_tokens=0 is not possible; choose at least 1"),
        (["top_k=-1"], "top_k=-1 is not possible"),
        ([f"seed={2**63}"], f"seed={2**63} is not possible; choose a whole number of 64 bits"),
        (["top_k=many"], "top_k='many' is no whole number; write it as top_k=100"),
        (["temperature"], "temperature='' is no number; write it as temperature=0.0"),
        (["temprature=1"], "'temprature' is no parameter; the nearest is temperature"),
    ],
)
def test_parameter_that_cannot_be_is_refused(assignments, message):
    with pytest.raises(UserError, match="^" + re.escape(message)):
        Sampling().changed(assignments)


def test_parameters_are_changed_by_name_and_the_others_stay():
    changed = Sampling(seed=3).changed(["temperature=1", "top_k=0"])
    assert changed == Sampling(temperature=1.0, top_k=0, seed=3)
    assert str(changed) == "max_new_tokens=256 temperature=1.0 top_k=0 top_p=0.98 seed=3"
    assert changed.changed(str(Sampling()).split()) == Sampling()


def test_pace_counts_the_tokens_of_an_answer():
    talking = conversation(max_new_tokens=7)
    assert talking.pace is None
    list(talking.ask("1"))
    assert talking.pace.num_tokens == 7 and 0 < talking.pace.first_s < talking.pace.seconds
    assert str(Pace(1, 0.5, 0.25)) == "1 token, 2.0 tokens/s, first after 0.2 s"


def test_language_model_of_another_kind_talks_too(talking_source):
    talking = Conversation.load(talking_source, Sampling(6))
    first = "".join(talking.ask("1"))
    assert first == generated(talking.model, [{"role": "user", "content": "1"}], max_new_tokens=6)
    assert list(talking.ask("2")) and len(talking.turns) == 4


def test_saved_conversations_are_lines_that_training_reads(tmp_path):
    talking = conversation(max_new_tokens=3)
    talking.system = "x é"
    file = tmp_path / "new" / "talks.jsonl"
    with pytest.raises(UserError, match="there is nothing to save yet"):
        talking.save(file)
    list(talking.ask("1"))
    talking.save(file)
    file.write_text(file.read_text().rstrip())  # an editor may leave the last line open
    list(talking.ask("2"))
    talking.save(file)
    assert [json.loads(line)["messages"] for line in file.read_text().splitlines()] == [
        talking.messages[:3],
        talking.messages,
    ]
    assert read_conversations(file) == [talking.messages[:3], talking.messages]
    with pytest.raises(UserError, match="does not end in .jsonl"):
        talking.save(tmp_path / "talks.txt")
    with pytest.raises(UserError, match="cannot be written"):
        talking.save(file / "below.jsonl")


def test_model_without_a_tokenizer_is_refused(tmp_path, stored_source):
    tiny_pair(source=str(stored_source)).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="holds no tokenizer"):
        Conversation.load(tmp_path / "model", Sampling())


def test_saved_model_talks_with_the_template_it_was_trained_in(tmp_path, talking_source):
    model = tiny_pair(source=str(talking_source))
    model.tokenizer = tiny_tokenizer()
    model.tokenizer.chat_template = "{% for message in messages %}Q {{ message['content'] }} {% endfor %}A "
    model.save_pretrained(tmp_path / "model")
    talking = Conversation.load(tmp_path / "model", Sampling(4))
    assert talking.tokenizer.chat_template == model.tokenizer.chat_template
    assert isinstance(talking.model, CombinedModel) and not talking.model.training
    assert list(talking.ask("1"))


def test_of_a_later_turn_the_source_reads_only_what_is_new():
    talking = conversation()
    "".join(talking.ask("one"))
    first = talking.shared.num_read
    prompt = encode_prompt([*talking.turns, {"role": "user", "content": "two"}], TOKENIZER)
    "".join(talking.ask("two"))
    assert 0 < talking.shared.num_read - first < len(prompt)
