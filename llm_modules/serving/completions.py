"""`POST /v1/chat/completions` and `POST /v1/completions`, streamed and whole."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
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
from llm_modules.serving.asking import Asked, encoded, unless_gone
from llm_modules.serving.errors import as_api_error
from llm_modules.serving.jobs import Piece
from llm_modules.serving.modules import Module
from llm_modules.serving.requests import ChatRequest, CompletionRequest
from llm_modules.serving.state import Serving

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
    ids = await encoded(lambda: encode_prompt(turns, module.tokenizer), module)
    return await _answered(request, Asked(request, serving, module, ids, body), _ChatForm(body, module))


@router.post("/completions", response_model=TextCompletion, responses=STREAMED)
async def complete(body: CompletionRequest, request: Request, serving: Serving):
    """Continue a text as it stands, without a chat template."""
    module = serving.modules.get(body.model)
    ids = await encoded(lambda: _encode_text(body.prompt, module), module)
    return await _answered(request, Asked(request, serving, module, ids, body), _TextForm(body, module))


def _encode_text(prompt: str | list[int], module: Module) -> list[int]:
    if isinstance(prompt, str):
        ids: list[int] = module.tokenizer(prompt, verbose=False)["input_ids"]
        return ids
    return prompt


async def _answered(request: Request, asked: Asked, form: "_Form") -> Any:
    """The response, whole or streamed."""
    if form.body.stream:
        return await _streamed(request, asked, form)
    answers = await unless_gone(request, _gather(asked))
    return form.whole(answers, Usage.of(len(asked.job.prompt_ids), asked.num_written))


async def _gather(asked: Asked) -> list[Piece]:
    """All answers, in order."""
    return sorted([piece async for piece in asked.pieces()], key=lambda piece: piece.index)


async def _streamed(request: Request, asked: Asked, form: "_Form") -> StreamingResponse:
    """Events, once the first piece is there: what fails before that has a status of its own."""
    pieces = asked.pieces()
    first = await unless_gone(request, anext(pieces))
    return StreamingResponse(
        _events(first, pieces, asked, form),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _events(first: Piece, pieces: AsyncIterator[Piece], asked: Asked, form: "_Form") -> AsyncIterator[str]:
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


class _Form(ABC):
    """One of the two forms of a response, whole or in the pieces of a stream."""

    def __init__(self, body: ChatRequest | CompletionRequest, module: Module, *, kind: str):
        self.body, self._tokenizer = body, module.tokenizer
        self._common: dict[str, Any] = {"id": new_id(kind), "model": module.name, "created": int(time.time())}

    @abstractmethod
    def whole(self, answers: Sequence[Piece], usage: Usage) -> BaseModel:
        """All answers at once."""

    def opening(self) -> Iterable[BaseModel]:
        """What comes before the text of a stream."""
        return ()

    @abstractmethod
    def chunks(self, piece: Piece) -> Iterable[BaseModel]:
        """A piece as events."""

    def closing(self, usage: Usage) -> Iterable[BaseModel]:
        """What comes after it."""
        if self.body.wants_usage:
            yield self._chunk([]).model_copy(update={"usage": usage})

    @abstractmethod
    def _chunk(self, choices: list) -> BaseModel: ...


class _ChatForm(_Form):
    def __init__(self, body: ChatRequest, module: Module):
        super().__init__(body, module, kind="chatcmpl")
        self._with_logprobs = bool(body.logprobs)

    def whole(self, answers: Sequence[Piece], usage: Usage) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=answer.index,
                message=ChatMessage(content=answer.text),
                logprobs=self._logprobs(answer),
                finish_reason=answer.finish_reason,
            )
            for answer in answers
        ]
        return ChatCompletion(**self._common, choices=choices, usage=usage)

    def opening(self) -> Iterable[BaseModel]:
        for index in range(self.body.n or 1):
            yield self._piece(index, Delta(role="assistant", content=""))

    def chunks(self, piece: Piece) -> Iterable[BaseModel]:
        if piece.text or piece.said:
            yield self._piece(piece.index, Delta(content=piece.text), self._logprobs(piece))
        if piece.finish_reason is not None:
            yield self._piece(piece.index, Delta(), None, piece.finish_reason)

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return ChatLogprobs.of(piece.said, self._tokenizer) if self._with_logprobs else None

    def _piece(self, index: int, delta: Delta, logprobs: Any = None, reason: Any = None) -> ChatChunk:
        return self._chunk([ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)])

    def _chunk(self, choices: list) -> ChatChunk:
        usage = {"usage": None} if self.body.wants_usage else {}
        return ChatChunk(**self._common, **usage, object="chat.completion.chunk", choices=choices)


class _TextForm(_Form):
    def __init__(self, body: CompletionRequest, module: Module):
        super().__init__(body, module, kind="cmpl")
        self._with_logprobs = body.logprobs is not None
        self._offsets = [0] * (body.n or 1)

    def whole(self, answers: Sequence[Piece], usage: Usage) -> TextCompletion:
        return TextCompletion(**self._common, choices=[self._choice(answer) for answer in answers], usage=usage)

    def chunks(self, piece: Piece) -> Iterable[BaseModel]:
        yield self._chunk([self._choice(piece)])

    def _choice(self, piece: Piece) -> TextChoice:
        logprobs = None
        if self._with_logprobs:
            logprobs = TextLogprobs.of(piece.said, self._tokenizer, offset=self._offsets[piece.index])
            self._offsets[piece.index] += len(piece.text)
        return TextChoice(index=piece.index, text=piece.text, logprobs=logprobs, finish_reason=piece.finish_reason)

    def _chunk(self, choices: list) -> TextCompletion:
        return TextCompletion(**self._common, object="text_completion", choices=choices, usage=None)
