"""One thread that writes all answers, token by token: continuous batching."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from llm_modules.serving.jobs import Answer, Job
from llm_modules.serving.metrics import Metrics
from llm_modules.serving.speakers import Rows, SpeakersTogether

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

READING_S = 0.25  # for prompts, between two tokens: as long as a reader hardly minds


class FullError(Exception):
    """As many requests wait as may."""


class LateError(Exception):
    """A job was given up because its time was over."""


class ClosedError(Exception):
    """The engine has stopped."""


@dataclass(eq=False)
class _Batch:
    """Answers of modules of one form that are stepped together; rows lie module by module."""

    rows: Rows
    answers: list[Answer]
    together: SpeakersTogether | None = None

    @property
    def form(self) -> Hashable:
        return self.answers[0].speaker.form

    def join_(self, rows: Rows, answers: Sequence[Answer]) -> None:
        """Take in more."""
        self.rows.join_(rows)
        self.answers += answers
        speakers = list(self._counts)
        order = sorted(range(len(self.answers)), key=lambda row: speakers.index(self.answers[row].speaker))
        if order != list(range(len(order))):
            self.rows.keep_(order)
            self.answers = [self.answers[row] for row in order]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits of the next token of each answer."""
        counts = self._counts
        if len(counts) == 1:
            return self.answers[0].speaker.step(tokens, self.rows)
        if self.together is None or self.together.speakers != list(counts):
            self.together = SpeakersTogether(list(counts))
        return self.together.step(tokens, self.rows, counts=list(counts.values()))

    @property
    def _counts(self) -> Counter[Any]:
        """Rows of each speaker, in their order."""
        return Counter(answer.speaker for answer in self.answers)


class Engine:
    """Reads prompts and writes answers in a thread of its own; use it with `with`.

    Between two tokens of what is being written, prompts are read for a quarter of a second, or one if it takes longer,
    so that a queue of prompts holds up nobody for long, and those that come together go on together. Answers of modules
    of one form are one batch: a step reads each module's weights once.

    Args:
        max_at_once: Answers written side by side.
        max_waiting: Jobs that wait for a place.
        metrics: Counted here.
    """

    def __init__(self, *, max_at_once: int, max_waiting: int, metrics: Metrics):
        self._max_at_once, self._max_waiting, self._metrics = max_at_once, max_waiting, metrics
        self._waiting: deque[Job] = deque()
        self._errands: deque[tuple[Callable, Future]] = deque()
        self._batches: list[_Batch] = []
        self._something = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.writing.set_function(lambda: self._num_writing)

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop after the token that is being written; jobs that are not finished fail."""
        with self._something:
            self._closing = True
            self._something.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Have a prompt answered.

        Raises:
            FullError: If too many wait.
            ClosedError: If the engine has stopped.
        """
        with self._something:
            if self._closing:
                raise ClosedError
            if len(self._waiting) >= self._max_waiting:
                raise FullError
            self._waiting.append(job)
            self._something.notify()

    def run(self, errand: Callable[[], Result]) -> "Future[Result]":
        """Have something else done with the models, between two tokens."""
        future: Future[Result] = Future()
        with self._something:
            if self._closing:
                raise ClosedError
            self._errands.append((errand, future))
            self._something.notify()
        return future

    @property
    def _num_writing(self) -> int:
        return sum(len(batch.answers) for batch in self._batches)

    def _work(self) -> None:
        while True:
            with self._something:
                self._something.wait_for(lambda: self._closing or self._errands or self._waiting or self._batches)
                if self._closing:
                    break
                errand = self._errands.popleft() if self._errands else None
            if errand is not None:
                _do(*errand)
            self._begin_waiting()
            for batch in list(self._batches):
                self._step(batch)
        for job in [*self._waiting, *(answer.job for batch in self._batches for answer in batch.answers)]:
            job.deliver(ClosedError())
        for _, future in self._errands:
            future.cancel()

    def _begin_waiting(self) -> None:
        """Begin those that wait, as many as there is time for; one at least."""
        until, job = time.monotonic() + READING_S, self._next_job()
        while job is not None:
            self._read_beside(job)
            self._begin(job)
            job = self._next_job() if time.monotonic() < until else None

    def _next_job(self) -> Job | None:
        """The first that still waits, if there is room for its answers."""
        with self._something:
            while self._waiting and not self._closing:
                job = self._waiting[0]
                if job.cancelled or job.is_late:
                    self._waiting.popleft()
                    if job.is_late:
                        job.deliver(LateError())
                elif self._num_writing and self._num_writing + job.num_answers > self._max_at_once:
                    return None
                else:
                    return self._waiting.popleft()
        return None

    def _read_beside(self, job: Job) -> None:
        """Have prompts read side by side with this one: of those that wait, there is room for and need the same."""
        speaker, room = job.module.speaker, max(0, self._max_at_once - self._num_writing - job.num_answers)
        with self._something:
            next_ones = [one for one in islice(self._waiting, room) if one.module.speaker.reads == speaker.reads]
        prompts = [one.prompt_ids for one in next_ones if not one.cancelled]
        if prompts:
            with suppress(Exception):  # whichever is at fault fails when it is begun, and the others do not
                speaker.read_together([job.prompt_ids, *prompts])

    def _begin(self, job: Job) -> None:
        """Read a prompt, write its first token, and let it join the batch of its module's form."""
        form = job.module.speaker.form
        batch = next((one for one in self._batches if one.form == form and one.rows.can_join), None)
        try:
            logits, rows = job.module.speaker.begin(job.prompt_ids)
            answers = [Answer(job, index) for index in range(job.num_answers)]
            self._metrics.began(job)
            for answer in answers:
                answer.take(logits[0])
            going = [answer for answer in answers if not answer.done]
            if not going:
                return self._metrics.wrote(job, len(answers))
            if len(going) > 1:
                rows.repeat_(len(going))
            if batch is not None and rows.can_join:
                batch.join_(rows, going)
            else:
                self._batches.append(_Batch(rows, going))
        except Exception as error:  # noqa: BLE001 - one job must not end the others
            self._fail(job, error)
        return None

    def _step(self, batch: _Batch) -> None:
        """One token for every answer of a batch; those that are finished or left leave it."""
        try:
            self._let_go(batch)
            if not batch.answers:
                return
            tokens = torch.tensor(
                [answer.last_token for answer in batch.answers], device=batch.rows.written.mask.device
            )
            logits = batch.step(tokens)
            for row, answer in enumerate(batch.answers):
                self._take(answer, logits[row])
        except Exception as error:  # noqa: BLE001 - one batch must not end the others
            self._batches.remove(batch)
            for job in dict.fromkeys(answer.job for answer in batch.answers):
                self._fail(job, error)
            return
        self._let_go(batch)

    def _take(self, answer: Answer, logits: Tensor) -> None:
        try:
            answer.take(logits)
        except Exception as error:  # noqa: BLE001 - one answer must not end those beside it
            answer.job.cancelled = True
            self._fail(answer.job, error)

    def _let_go(self, batch: _Batch) -> None:
        for job in dict.fromkeys(answer.job for answer in batch.answers):
            if job.is_late and not job.cancelled:
                job.cancelled = True
                job.deliver(LateError())
        staying = [row for row, answer in enumerate(batch.answers) if not (answer.done or answer.job.cancelled)]
        if len(staying) == len(batch.answers):
            return
        left = [answer for row, answer in enumerate(batch.answers) if row not in staying]
        batch.answers = [batch.answers[row] for row in staying]
        for job in dict.fromkeys(answer.job for answer in left):
            self._metrics.wrote(job, sum(answer.num_tokens for answer in left if answer.job is job))
        if not staying:
            self._batches.remove(batch)
        else:
            batch.rows.keep_(staying)

    def _fail(self, job: Job, error: Exception) -> None:
        logger.error("a request to %s failed", job.module.name, exc_info=error)
        with suppress(Exception):
            job.deliver(error)


def _do(errand: Callable[[], Result], future: "Future[Result]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(errand())
    except Exception as error:  # noqa: BLE001 - carried to whoever asked
        future.set_exception(error)
