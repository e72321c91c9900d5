"""`POST /v1/chat/completions` and `POST /v1/completions`, streamed and whole."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from llm_modules.data.templates import encode_prompt
from llm_modules.serving.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Delta,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    Usage,
    new_id,
)
from llm_modules.serving.asking import Asked, check_prompt, unless_gone
from llm_modules.serving.errors import as_api_error
from llm_modules.serving.jobs import Piece, Said
from llm_modules.serving.modules import Module
from llm_modules.serving.requests import ChatRequest, CompletionRequest
from llm_modules.serving.state import Serving, State

router = APIRouter(tags=["completions"])
EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}


@router.post("/chat/completions", response_model=ChatCompletion, responses=STREAMED)
async def chat(body: ChatRequest, request: Request, serving: Serving):
    """Answer a conversation."""
    module = serving.modules.get(body.model)
    turns = [message.as_turn() for message in body.messages]
    ids = await asyncio.to_thread(_checked, lambda: encode_prompt(turns, module.tokenizer), module)
    asked = _ask(serving, request, module, ids, body)
    if body.stream:
        return await _streamed(request, asked, _ChatStream(body, module))
    answers = await unless_gone(request, _gather(asked))
    return ChatCompletion(
        id=new_id("chatcmpl"),
        model=module.name,
        choices=[
            ChatChoice(
                index=index,
                message=ChatMessage(content=answer.text),
                logprobs=ChatLogprobs.of(answer.said, module.tokenizer) if body.logprobs else None,
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(answers)
        ],
        usage=Usage.of(len(ids), asked.num_written),
    )


@router.post("/completions", response_model=TextCompletion, responses=STREAMED)
async def complete(body: CompletionRequest, request: Request, serving: Serving):
    """Continue a text as it stands, without a chat template."""
    module = serving.modules.get(body.model)
    ids = await asyncio.to_thread(_checked, lambda: _encode_text(body.prompt, module), module)
    asked = _ask(serving, request, module, ids, body)
    if body.stream:
        return await _streamed(request, asked, _TextStream(body, module))
    answers = await unless_gone(request, _gather(asked))
    return TextCompletion(
        id=new_id("cmpl"),
        model=module.name,
        choices=[
            TextChoice(
                index=index,
                text=answer.text,
                logprobs=None if body.logprobs is None else TextLogprobs.of(answer.said, module.tokenizer, offset=0),
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(answers)
        ],
        usage=Usage.of(len(ids), asked.num_written),
    )


def _encode_text(prompt: str | list[int], module: Module) -> list[int]:
    if isinstance(prompt, str):
        ids: list[int] = module.tokenizer(prompt, verbose=False)["input_ids"]
        return ids
    return prompt


def _checked(encode: Callable[[], list[int]], module: Module) -> list[int]:
    ids = encode()
    check_prompt(ids, module)
    return ids


def _ask(
    serving: State, request: Request, module: Module, ids: Sequence[int], body: ChatRequest | CompletionRequest
) -> Asked:
    asked = Asked(serving, module, ids, body)
    request.state.asked = asked  # for the access log
    return asked


async def _gather(asked: Asked) -> list[Piece]:
    """Whole answers, each as one piece."""
    texts: list[list[str]] = [[] for _ in range(asked.job.num_answers)]
    said: list[list[Said]] = [[] for _ in texts]
    last: list[Piece | None] = [None for _ in texts]
    async for piece in asked.pieces():
        texts[piece.index].append(piece.text)
        said[piece.index] += piece.said
        last[piece.index] = piece
    return [
        Piece(index, "".join(texts[index]), said[index], piece.num_tokens, piece.finish_reason)
        for index, piece in enumerate(last)
        if piece is not None
    ]


async def _streamed(request: Request, asked: Asked, form: "_Stream") -> StreamingResponse:
    """Events, once the first piece is there: what fails before that has a status of its own."""
    pieces = asked.pieces()
    first = await unless_gone(request, anext(pieces))
    return StreamingResponse(
        _events(first, pieces, asked, form),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _events(first: Piece, pieces: AsyncIterator[Piece], asked: Asked, form: "_Stream") -> AsyncIterator[str]:
    try:
        for chunk in form.opening():
            yield _event(chunk)
        for chunk in form.chunks(first):
            yield _event(chunk)
        async for piece in pieces:
            for chunk in form.chunks(piece):
                yield _event(chunk)
        for chunk in form.closing(Usage.of(len(asked.job.prompt_ids), asked.num_written)):
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except Exception as error:  # noqa: BLE001 - the status is sent, so the error is an event
        yield _event(as_api_error(error).answer)
    finally:
        await pieces.aclose()  # type: ignore[attr-defined] # a generator: the job ends with it


def _event(chunk: BaseModel) -> str:
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"


class _Stream:
    """The pieces of a streamed response, in one of the two forms."""

    def __init__(self, body: ChatRequest | CompletionRequest, module: Module):
        self._body, self._tokenizer = body, module.tokenizer
        self._common: dict[str, Any] = {"model": module.name, "created": int(time.time())}
        if body.wants_usage:
            self._common["usage"] = None

    def opening(self) -> Iterable[BaseModel]:
        """What comes before the text."""
        return ()

    def chunks(self, piece: Piece) -> Iterable[BaseModel]:
        """A piece as events."""
        raise NotImplementedError

    def closing(self, usage: Usage) -> Iterable[BaseModel]:
        """What comes after it."""
        if self._body.wants_usage:
            yield self._chunk([]).model_copy(update={"usage": usage})

    def _chunk(self, choices: list) -> Any:
        raise NotImplementedError


class _ChatStream(_Stream):
    def __init__(self, body: ChatRequest, module: Module):
        super().__init__(body, module)
        self._common |= {"id": new_id("chatcmpl"), "object": "chat.completion.chunk"}
        self._with_logprobs = bool(body.logprobs)

    def opening(self) -> Iterable[BaseModel]:
        for index in range(self._body.n or 1):
            yield self._piece(index, Delta(role="assistant", content=""))

    def chunks(self, piece: Piece) -> Iterable[BaseModel]:
        if piece.text or piece.said:
            logprobs = ChatLogprobs.of(piece.said, self._tokenizer) if self._with_logprobs else None
            yield self._piece(piece.index, Delta(content=piece.text), logprobs)
        if piece.finish_reason is not None:
            yield self._piece(piece.index, Delta(), None, piece.finish_reason)

    def _piece(self, index: int, delta: Delta, logprobs: Any = None, reason: Any = None) -> ChatChunk:
        return self._chunk([ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)])

    def _chunk(self, choices: list) -> ChatChunk:
        return ChatChunk(**self._common, choices=choices)


class _TextStream(_Stream):
    def __init__(self, body: CompletionRequest, module: Module):
        super().__init__(body, module)
        self._common |= {"id": new_id("cmpl"), "object": "text_completion", "usage": None}
        self._with_logprobs = body.logprobs is not None
        self._offsets = [0] * (body.n or 1)

    def chunks(self, piece: Piece) -> Iterable[BaseModel]:
        logprobs = None
        if self._with_logprobs:
            logprobs = TextLogprobs.of(piece.said, self._tokenizer, offset=self._offsets[piece.index])
            self._offsets[piece.index] += len(piece.text)
        choice = TextChoice(index=piece.index, text=piece.text, logprobs=logprobs, finish_reason=piece.finish_reason)
        yield self._chunk([choice])

    def _chunk(self, choices: list) -> TextCompletion:
        return TextCompletion(**self._common, choices=choices)
