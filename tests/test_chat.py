"""A conversation is kept, streamed, and can be stopped without losing it."""

import builtins
import os
import signal
import threading
import time

import pytest
import torch
from transformers import GenerationConfig

from llm_modules import CombinedModel, UserError
from llm_modules.chat import Conversation, Sampling, talk
from llm_modules.data.templates import encode_prompt
from tests.conftest import VOCAB, randomise_, tiny_pair, tiny_source_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def endless_pair():
    """A pair with no position table and an end-of-sequence token that is never the likeliest."""
    model = randomise_(tiny_pair(generator=tiny_source_config(hidden_size=12, num_hidden_layers=1, bos_token_id=None)))
    model.source.output_matrix[2] = 0
    return model


def conversation(model=None, **sampling):
    return Conversation(model or endless_pair(), TOKENIZER, Sampling(**({"max_new_tokens": 8} | sampling)))


def generated(model, turns, **kwargs):
    ids = torch.tensor([encode_prompt(turns, TOKENIZER)])
    written = model.generate(ids, max_new_tokens=8, do_sample=False, **kwargs)
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


def test_model_without_a_tokenizer_is_refused(tmp_path, stored_source):
    tiny_pair(source=str(stored_source)).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="holds no tokenizer"):
        Conversation.load(tmp_path / "model", Sampling())


# -- the terminal loop -----------------------------------------------------------------------------------------------


@pytest.fixture
def typing(monkeypatch):
    """Lets `input` give lines one after another, then the end of the file."""

    def type_lines(*lines):
        waiting = list(lines)

        def read(prompt=""):
            print(prompt, end="")
            if not waiting:
                raise EOFError
            line = waiting.pop(0)
            if line is KeyboardInterrupt:
                raise line
            return line

        monkeypatch.setattr(builtins, "input", read)
        return waiting

    return type_lines


def test_loop_answers_until_the_end_of_input(typing, capsys):
    model = endless_pair()
    typing("1 + 2 ?", "", "3")
    talking = conversation(model)
    talk(talking)
    said = capsys.readouterr().out
    assert said.startswith("Type a question. /reset forgets the conversation, /exit leaves")
    assert generated(model, [{"role": "user", "content": "1 + 2 ?"}]) in said
    assert len(talking.turns) == 4


def test_loop_knows_its_commands(typing, capsys):
    waiting = typing("1", "/reset", "/restet now", "/exit", "2")
    talking = conversation()
    talk(talking)
    said = capsys.readouterr().out
    assert "(forgotten)" in said and "/restet is no command. Type a question." in said
    assert talking.turns == [] and waiting == ["2"]


def test_loop_tells_what_cannot_be_answered_and_goes_on(typing, capsys):
    typing("1", "/exit")
    talk(conversation(tiny_pair(), max_new_tokens=500))
    assert "error: prompt and max_new_tokens need" in capsys.readouterr().out


def test_ctrl_c_at_the_question_leaves(typing):
    waiting = typing(KeyboardInterrupt, "1")
    talk(conversation())
    assert waiting == ["1"]


class Overheard(Conversation):
    """Tells another thread when an answer has begun."""

    begun = threading.Event()

    def ask(self, question):
        for piece in super().ask(question):
            if piece:
                self.begun.set()
            yield piece


def test_ctrl_c_stops_the_answer_and_not_the_program(typing, capsys):
    typing("1", "2", "/exit")
    talking = Overheard(endless_pair(), TOKENIZER, Sampling(max_new_tokens=100_000))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def press_twice():
        for _ in range(2):
            talking.begun.wait(30)
            talking.begun.clear()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            talking.begun.clear()  # of the first answer still

    presser = threading.Thread(target=press_twice)
    presser.start()
    try:
        talk(talking)
    finally:
        signal.signal(signal.SIGINT, before)
    presser.join()
    assert capsys.readouterr().out.count(" (stopped)") == 2
    assert [turn["role"] for turn in talking.turns] == ["user", "assistant"] * 2
    assert all(turn["content"] for turn in talking.turns)


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
    first = talking._shared.num_read
    prompt = encode_prompt([*talking.turns, {"role": "user", "content": "two"}], TOKENIZER)
    "".join(talking.ask("two"))
    assert 0 < talking._shared.num_read - first < len(prompt)
