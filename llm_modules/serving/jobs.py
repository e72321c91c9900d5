"""What the engine is given to do, and what it gives back."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from llm_modules.chat import Sampling
from llm_modules.serving.drawing import Drawing, Likelihood, likelihoods
from llm_modules.serving.modules import Module
from llm_modules.serving.speakers import Speaker
from llm_modules.serving.wording import Wording


@dataclass(frozen=True)
class Said:
    """A token that was written, for those who asked for likelihoods.

    Args:
        likelihood: Of the token.
        others: Of the likeliest tokens in its place.
    """

    likelihood: Likelihood
    others: list[Likelihood]


@dataclass(frozen=True)
class Piece:
    """Some of an answer, or the whole of it.

    Args:
        index: Which answer to the prompt.
        text: Text to append; may be empty.
        said: Its tokens, where likelihoods were asked for.
        num_tokens: Tokens of the answer so far, the one that ended it included.
        finish_reason: `"stop"` or `"length"` in the last piece.
    """

    index: int
    text: str
    said: list[Said]
    num_tokens: int
    finish_reason: str | None = None


@dataclass(eq=False)
class Job:
    """A prompt to answer.

    Args:
        module: Who answers.
        prompt_ids: The prompt.
        sampling: How, and how long at most.
        deliver: Called in the engine's thread with each piece, or with the error that ended the job.
        whole: Deliver each answer as one piece; else text as it comes.
        num_answers: How many.
        stop: Texts that end an answer.
        num_likelihoods: Tell the likelihood of each token and of so many others; `None`: of none.
        deadline: Of `time.monotonic`, when it is given up.
    """

    module: Module
    prompt_ids: Sequence[int]
    sampling: Sampling
    deliver: Callable[[Piece | Exception], None]
    whole: bool = False
    num_answers: int = 1
    stop: Sequence[str] = ()
    num_likelihoods: int | None = None
    deadline: float = float("inf")
    cancelled: bool = False
    arrived: float = field(default_factory=time.monotonic)

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.deadline


class Answer:
    """One answer while it is written.

    Args:
        job: What it answers.
        index: Which answer of the job.
    """

    def __init__(self, job: Job, index: int):
        self.job, self.index = job, index
        self.num_tokens, self.last_token = 0, -1
        self.done = False
        self._drawing = Drawing(job.sampling, index=index)
        self._wording = Wording(job.module.tokenizer, job.stop)
        self._text = ""  # and what was said, since the last piece
        self._said: list[Said] = []

    @property
    def speaker(self) -> Speaker:
        """Who writes it."""
        return self.job.module.speaker

    def take(self, logits: Tensor) -> None:
        """Choose the next token by logits `[V]` and deliver what can be told."""
        job = self.job
        self.last_token = token = self._drawing.draw(logits)
        self.num_tokens += 1
        ended = token in job.module.ends
        if not ended:
            self._text += self._wording.add(token)
        if job.num_likelihoods is not None and not ended:
            self._said.append(Said(*likelihoods(logits, token, job.num_likelihoods)))
        reason = None
        if ended or self._wording.stopped:
            reason = "stop"
        elif self.num_tokens >= job.sampling.max_new_tokens:
            reason = "length"
        if reason is not None:
            self.done = True
            self._text += self._wording.finish()
            if self._wording.stopped:
                reason = "stop"
        if reason or (self._text and not job.whole):
            job.deliver(Piece(self.index, self._text, self._said, self.num_tokens, reason))
            self._text, self._said = "", []
