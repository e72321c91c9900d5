"""From a request to the engine's pieces: the prompt is checked and submitted, and given up when the client goes."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from fastapi import Request

from llm_modules.chat import Sampling
from llm_modules.data.dataset import check_ids
from llm_modules.errors import UserError
from llm_modules.serving.errors import ApiError
from llm_modules.serving.jobs import Job, Piece
from llm_modules.serving.limits import Limits
from llm_modules.serving.modules import Module
from llm_modules.serving.requests import ChatRequest, CompletionRequest
from llm_modules.serving.state import State

Result = TypeVar("Result")


class Asked:
    """A job on its way; its pieces cross from the engine's thread to the event loop.

    Args:
        request: What came; the access log finds the job there.
        serving: Whose engine does it.
        module: Who answers.
        prompt_ids: The prompt.
        body: The request's.

    Raises:
        ApiError: For a prompt or an answer that is longer than may be.
        FullError: If too many wait.
    """

    def __init__(
        self,
        request: Request,
        serving: State,
        module: Module,
        prompt_ids: Sequence[int],
        body: ChatRequest | CompletionRequest,
    ):
        loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        def deliver(piece: Piece | Exception) -> None:
            with suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        self.job = Job(
            module,
            prompt_ids,
            sampling_of(body, num_tokens_of(body, module, len(prompt_ids), serving.limits)),
            deliver,
            whole=not body.stream,  # which spares the event loop and the engine each other
            num_answers=body.n or 1,
            stop=body.stop or (),
            num_likelihoods=body.num_likelihoods,
            deadline=time.monotonic() + serving.limits.timeout_s,
        )
        self._written = [0] * self.job.num_answers
        serving.engine.submit(self.job)
        request.state.asked = self

    @property
    def num_written(self) -> int:
        """Tokens of all its answers so far, as far as they have come here."""
        return sum(self._written)

    async def pieces(self) -> AsyncIterator[Piece]:
        """All pieces, to the last of the last answer.

        Raises:
            Exception: What the engine met.
        """
        going = self.job.num_answers
        try:
            while going:
                piece = await self._pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                self._written[piece.index] = piece.num_tokens
                if piece.finish_reason is not None:
                    going -= 1
                yield piece
        finally:
            self.job.cancelled = True  # whoever stops listening does not want the rest


def num_tokens_of(body: ChatRequest | CompletionRequest, module: Module, prompt_len: int, limits: Limits) -> int:
    """Most tokens of an answer: as asked for, or what there is room for.

    Raises:
        ApiError: If more are asked for, or prompted, than may be.
    """
    if prompt_len > limits.max_prompt_tokens:
        raise ApiError(
            400, f"the prompt has {prompt_len} tokens, more than this server's {limits.max_prompt_tokens}; shorten it",
            code="context_length_exceeded",
        )  # fmt: skip
    asked = body.max_tokens
    if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
        asked = body.max_completion_tokens
    if asked is not None and asked > limits.max_new_tokens:
        raise ApiError(
            400, f"max_tokens={asked} is more than the {limits.max_new_tokens} that this server writes; ask for fewer",
            param="max_tokens",
        )  # fmt: skip
    try:
        module.speaker.check_room(prompt_len, asked or 1)
    except UserError as error:
        raise ApiError(400, str(error), code="context_length_exceeded") from error
    if asked is not None:
        return asked
    room = module.speaker.room_left(prompt_len)
    return limits.max_new_tokens if room is None else min(limits.max_new_tokens, room)


def sampling_of(body: ChatRequest | CompletionRequest, max_new_tokens: int) -> Sampling:
    """How to draw; without a temperature the likeliest word is taken, as `llm-modules generate` does."""
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=body.temperature or 0.0,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(62) if body.seed is None else body.seed,
    )


async def encoded(encode: Callable[[], list[int]], module: Module) -> list[int]:
    """A prompt's tokens, made in a thread: a long text must not hold up the event loop.

    Raises:
        UserError: For an id beyond the module's vocabulary.
    """

    def run() -> list[int]:
        ids = encode()
        check_ids(ids, module.tokenizer, vocab_size=module.speaker.vocab_size)
        return ids

    return await asyncio.to_thread(run)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """What is worked on, given up when the client goes.

    Raises:
        ApiError: If it went; nobody reads this.
    """
    working = asyncio.ensure_future(work)
    going = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, going), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "the client has gone")
    finally:
        for task in (working, going):
            task.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
