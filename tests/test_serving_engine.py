"""Whoever joins or leaves beside it: an answer is what its module writes alone."""

import random
import threading
import time

import pytest
import torch

from llm_modules.chat import Sampling
from llm_modules.data.templates import encode_prompt
from llm_modules.serving.engine import ClosedError, Engine, FullError, LateError
from llm_modules.serving.jobs import Job
from llm_modules.serving.metrics import Metrics
from tests.conftest import VOCAB, random_ids
from tests.tiny_server import KINDS, tiny_modules

EVERYBODY = (*KINDS, "source", "alone")


@pytest.fixture(scope="module")
def modules():
    return tiny_modules(alone=True)


def engine(**limits):
    return Engine(**({"max_at_once": 16, "max_waiting": 100, "metrics": Metrics()} | limits))


class Heard:
    """What a job delivers, and a way to wait for its end."""

    def __init__(self, num_answers=1):
        self.texts, self.reasons, self.error = [""] * num_answers, [None] * num_answers, None
        self.num_tokens, self.begun, self.ended = [0] * num_answers, threading.Event(), threading.Event()

    def __call__(self, piece):
        if isinstance(piece, Exception):
            self.error = piece
            self.ended.set()
            return
        self.texts[piece.index] += piece.text
        self.reasons[piece.index], self.num_tokens[piece.index] = piece.finish_reason, piece.num_tokens
        self.begun.set()
        if all(self.reasons):
            self.ended.set()

    def wait(self):
        assert self.ended.wait(60)
        if self.error is not None:
            raise self.error
        return self


def job(module, ids, heard, *, max_new_tokens=10, temperature=0.0, seed=0, **others):
    sampling = Sampling(max_new_tokens, temperature=temperature, top_k=others.pop("top_k", 0), top_p=1.0, seed=seed)
    return Job(module, ids, sampling, heard, **others)


def prompt(rng, module, longest=40):
    words = " ".join(rng.choice("abcdefghij") for _ in range(rng.randint(1, longest)))
    return encode_prompt([{"role": "user", "content": words}], module.tokenizer)


@torch.no_grad()
def alone(module, ids, steps):
    """Greedy tokens by one forward over the whole text each."""
    ids, begun = list(ids), len(ids)
    for _ in range(steps):
        if module.model is None:
            source = module.speaker._source
            row = torch.tensor([ids])
            states = source.read(row, attention_mask=torch.ones_like(row), taps=[source.config.num_hidden_layers])
            logits = source.readout(states[:, -1, 0]).logits()
        else:
            prompts = (torch.arange(len(ids)) < begun)[None]
            logits = module.model(torch.tensor([ids]), prompt_mask=prompts, logits_to_keep=1).logits[:, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] in module.ends:
            break
    return ids[begun:]


@pytest.mark.parametrize("name", EVERYBODY)
def test_rows_that_join_and_leave_have_the_logits_they_have_alone(modules, name):
    speaker = modules.get(name).speaker
    prompts = [random_ids(1, length, seed=length)[0].tolist() for length in (23, 4, 31, 12)]
    follow = random_ids(4, 9, seed=7)
    expected = []
    for ids, row in zip(prompts, follow, strict=True):
        logits, rows = speaker.begin(ids)
        expected.append([logits[0], *(speaker.step(row[place : place + 1], rows)[0] for place in range(9))])

    def step(running, rows, places):
        found = speaker.step(torch.stack([follow[one, places[one]] for one in running]), rows)
        for row, one in enumerate(running):
            places[one] += 1
            torch.testing.assert_close(found[row], expected[one][places[one]], atol=1e-4, rtol=1e-4)

    places = dict.fromkeys(range(4), 0)
    _, rows = speaker.begin(prompts[0])
    step([0], rows, places)
    for one in (1, 2):  # a shorter one, then one that is longer than all
        rows.join_(speaker.begin(prompts[one])[1])
        step(list(range(one + 1)), rows, places)
    rows.keep_([0, 1])  # the longest leaves
    step([0, 1], rows, places)
    rows.join_(speaker.begin(prompts[3])[1])
    step([0, 1, 3], rows, places)
    rows.keep_([2, 1])  # and they need not keep their order
    step([3, 1], rows, places)
    rows.repeat_(2)
    step([3], _only(rows, 0), places)


def _only(rows, row):
    rows.keep_([row])
    return rows


@pytest.mark.parametrize("name", EVERYBODY)
def test_room_of_columns_is_given_back_when_the_longest_row_leaves(modules, name):
    speaker = modules.get(name).speaker
    _, rows = speaker.begin(random_ids(1, 40)[0].tolist())
    short = random_ids(1, 5)[0].tolist()
    rows.join_(speaker.begin(short)[1])
    rows.keep_([1])
    assert {columns.mask.shape[1] for columns in rows._parts} == {5}
    assert {layer.keys.shape[2] for columns in rows._parts for layer in columns.layers} == {5}


@pytest.mark.parametrize(("reading_s", "done"), [(60.0, "begin begin begin step"), (0.0, "begin step begin step")])
def test_prompts_that_wait_are_begun_together_while_there_is_time(modules, monkeypatch, reading_s, done):
    monkeypatch.setattr("llm_modules.serving.engine.READING_S", reading_s)
    module, hold, heard, told = modules.get("causal"), threading.Event(), [Heard() for _ in range(3)], []

    def watch(name):
        whole = getattr(module.speaker, name)
        monkeypatch.setattr(module.speaker, name, lambda *given: told.append(name) or whole(*given))

    watch("begin")
    watch("step")
    with engine() as running:
        running.run(hold.wait)
        for which, listener in enumerate(heard):
            running.submit(job(module, [5, 6, 7 + which], listener))
        hold.set()
        for listener in heard:
            listener.wait()
    assert " ".join(told).startswith(done)


def test_prompts_that_wait_are_read_side_by_side_by_those_who_need_the_same(modules, monkeypatch):
    whole, rows = modules.shared.source.read, []
    hold, heard = threading.Event(), []

    def read(ids, **given):
        if ids.shape[1] > 1:  # prompts, not the last words of an answer
            rows.append(len(ids))
        return whole(ids, **given)

    monkeypatch.setattr(modules.shared.source, "read", read)
    with engine() as running:
        running.run(hold.wait)
        for number, name in enumerate(("prompt", "causal", "prompt", "causal", "prompt")):
            heard.append(Heard())
            ids = random_ids(1, 8 + number % 2, seed=100 + number)[0].tolist()
            running.submit(job(modules.get(name), ids, heard[-1], max_new_tokens=2))
        left = job(modules.get("prompt"), random_ids(1, 8, seed=200)[0].tolist(), Heard())
        left.cancelled = True
        running.submit(left)
        hold.set()
        for listener in heard:
            listener.wait()
    assert modules.get("prompt").speaker.reads == modules.get("causal").speaker.reads  # both take the final state
    assert rows == [5]


def test_answers_side_by_side_are_those_of_one_forward_over_the_whole_text(modules):
    rng, heard = random.Random(0), []
    with engine() as running:
        for _ in range(3):
            for name in EVERYBODY:
                module = modules.get(name)
                ids, listener = prompt(rng, module), Heard()
                heard.append((module, ids, listener))
                running.submit(job(module, ids, listener))
                time.sleep(rng.choice((0, 0.002)))
        for _, _, listener in heard:
            listener.wait()
    for module, ids, listener in heard:
        written = alone(module, ids, 10)
        assert listener.texts[0] == module.tokenizer.decode(written, skip_special_tokens=True)
        assert listener.num_tokens == [len(written)]
        assert listener.reasons == ["stop" if written[-1] in module.ends else "length"]


def test_sampled_answers_depend_on_their_seed_and_not_on_their_neighbours(modules):
    rng = random.Random(1)
    wanted = [(modules.get(rng.choice(EVERYBODY)), seed) for seed in range(12)]
    asked = [(module, prompt(rng, module), seed) for module, seed in wanted]

    def told(running, module, ids, seed):
        listener = Heard(2)
        running.submit(job(module, ids, listener, temperature=1.3, top_k=20 * (seed % 2), seed=seed, num_answers=2))
        return listener

    with engine() as running:
        by_itself = [told(running, *one).wait().texts for one in asked]
    with engine() as running:
        listeners = [told(running, *one) for one in asked]
        together = [listener.wait().texts for listener in listeners]
    assert by_itself == together
    assert any(first != second for first, second in together)  # two answers to one prompt draw apart


def test_source_reads_a_prompt_once_whoever_asks(modules):
    ids = random_ids(1, 60, seed=77)[0].tolist()
    with engine() as running:
        before = modules.shared.num_read
        for name in ("prompt", "causal", "inside", "bare", "source"):
            listener = Heard()
            running.submit(job(modules.get(name), ids, listener, max_new_tokens=1))
            listener.wait()
    assert modules.shared.num_read - before == 60


def endless(modules):
    """A module whose answers go on for as long as they are let."""
    return modules.get("rotary")


def start_long(running, modules, **others):
    module, listener = endless(modules), Heard()
    module.model.source.output_matrix[2] = 0  # its end is never the likeliest
    begun = job(module, prompt(random.Random(3), module), listener, max_new_tokens=100_000, **others)
    running.submit(begun)
    assert listener.begun.wait(30)
    return begun, listener


def test_cancelled_answer_leaves_the_batch_and_makes_room(modules):
    with engine(max_at_once=1) as running:
        begun, _ = start_long(running, modules)
        waiting = Heard()
        running.submit(job(modules.get("prompt"), [5, 6], waiting, max_new_tokens=2))
        assert not waiting.ended.wait(0.2)
        begun.cancelled = True
        waiting.wait()
        assert running.run(lambda: running._num_writing).result(30) == 0


def test_queue_is_bounded_and_a_cancelled_job_leaves_it(modules):
    with engine(max_at_once=1, max_waiting=1) as running:
        begun, _ = start_long(running, modules)
        dropped = job(modules.get("prompt"), [5, 6], Heard())
        running.submit(dropped)
        with pytest.raises(FullError):
            running.submit(job(modules.get("prompt"), [5, 6], Heard()))
        dropped.cancelled = begun.cancelled = True
        last = Heard()
        while True:
            try:
                running.submit(job(modules.get("prompt"), [5, 6], last))
                break
            except FullError:
                time.sleep(0.01)
        last.wait()


def test_late_jobs_are_given_up_written_or_waiting(modules):
    with engine(max_at_once=1) as running:
        _, late = start_long(running, modules, deadline=time.monotonic() + 0.5)
        waiting = Heard()
        running.submit(job(modules.get("prompt"), [5, 6], waiting, deadline=time.monotonic() + 0.1))
        for listener in (late, waiting):
            with pytest.raises(LateError):
                listener.wait()


def test_failure_ends_one_job_and_not_the_engine(modules):
    hold = threading.Event()
    with engine() as running:
        running.run(hold.wait)  # so that they are read together
        before, failing, going = Heard(), Heard(), Heard()
        running.submit(job(modules.get("prompt"), [7, 6], before))
        running.submit(job(modules.get("prompt"), [VOCAB + 5], failing))  # no such row in the table
        running.submit(job(modules.get("prompt"), [5, 6], going))
        hold.set()
        before.wait()
        going.wait()
        with pytest.raises(IndexError):
            failing.wait()


def test_answer_that_cannot_be_delivered_leaves_the_others_beside_it(modules):
    class Deaf(Heard):
        def __call__(self, piece):
            super().__call__(piece)
            if self.num_tokens[0] > 2:
                raise RuntimeError("nobody listens")

    deaf, going = Deaf(), Heard()
    with engine() as running:
        begun, _ = start_long(running, modules)
        for listener in (deaf, going):
            running.submit(job(modules.get("rotary"), [5, 6], listener, max_new_tokens=6))
        going.wait()
        with pytest.raises(RuntimeError, match="nobody listens"):
            deaf.wait()
        assert going.num_tokens == [6]
        begun.cancelled = True


def test_stopped_engine_tells_those_who_wait_and_takes_no_more(modules):
    with engine(max_at_once=1) as running:
        _, writing = start_long(running, modules)
        waiting = Heard()
        running.submit(job(modules.get("prompt"), [5, 6], waiting))
    for listener in (writing, waiting):
        with pytest.raises(ClosedError):
            listener.wait()
    with pytest.raises(ClosedError):
        running.submit(job(modules.get("prompt"), [5, 6], Heard()))


def test_errands_are_run_between_tokens_and_their_errors_carried(modules):
    with engine() as running:
        begun, _ = start_long(running, modules)
        assert running.run(lambda: threading.current_thread().name).result(30) == "engine"
        with pytest.raises(ZeroDivisionError):
            running.run(lambda: 1 / 0).result(30)
        begun.cancelled = True


def test_more_answers_than_are_written_at_once_still_come(modules):
    listener = Heard(4)
    with engine(max_at_once=2) as running:
        running.submit(job(modules.get("causal"), [5, 6, 7], listener, num_answers=4))
        listener.wait()
    assert len(set(listener.texts)) == 1
