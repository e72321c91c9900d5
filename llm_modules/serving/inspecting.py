"""`POST /v1/inspect`: an answer, and what each of its tokens was written from."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llm_modules.data.templates import Example, encode_prompt
from llm_modules.inspection import Inspection, check_layers, inspect_answer
from llm_modules.modeling import CombinedModel
from llm_modules.serving.answers import FinishReason
from llm_modules.serving.asking import Asked, encoded, unless_gone
from llm_modules.serving.errors import ApiError
from llm_modules.serving.modules import Module
from llm_modules.serving.requests import ChatRequest, Count, Message, Name
from llm_modules.serving.state import Serving, State

router = APIRouter(tags=["inspection"])

NUM_TOKENS = 64  # of an answer, where the request does not say
MAX_WEIGHTS = 1_000_000  # of attention in one response: some 7 MB
DECIMALS = 4


class InspectionRequest(BaseModel):
    """Of `POST /v1/inspect`."""

    model: Name
    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_tokens: Count = NUM_TOKENS


class InspectionAnswer(BaseModel):
    """The likeliest answer of a module, and what its bridge did for each token; a layer's rows are tokens written.

    The attention is the mean over heads; a row sums to one, or is zero where nothing could be read.
    """

    object: Literal["inspection"] = "inspection"
    model: str
    read: list[str] = Field(description="Tokens that could be read, spelled: ␣ for a blank, ↵ for a line break.")
    written: list[str] = Field(description="Tokens of the answer, spelled; the one that ended it included.")
    gates: list[list[float]] = Field(description="[layers, written], how far open, 0 to 1.")
    attention: list[list[list[float]]] = Field(description="[layers, written, read], what share of it.")
    finish_reason: FinishReason

    @classmethod
    def of(cls, found: Inspection, *, model: str, finish_reason: str | None) -> "InspectionAnswer":
        """Rounded: the rest would only be digits on the way."""
        gates, attention = (
            states.double().round(decimals=DECIMALS).tolist()
            for states in (found.watched.gates, found.watched.attention)
        )
        return cls(
            model=model,
            read=list(found.read),
            written=list(found.written),
            gates=gates,
            attention=attention,
            finish_reason=finish_reason,
        )


@router.post("/inspect")
async def inspect(body: InspectionRequest, request: Request, serving: Serving) -> InspectionAnswer:
    """Answer a conversation with the likeliest words, and tell what each token of the answer was written from."""
    module = serving.modules.get(body.model)
    model = _pair_of(module, serving)
    turns = [message.as_turn() for message in body.messages]
    ids = await encoded(lambda: encode_prompt(turns, module.tokenizer), module)
    _check_size(model, len(ids), body.max_tokens)
    asked = Asked(request, serving, module, ids, _as_chat(body))
    response_ids, reason = await unless_gone(request, _written(asked))

    def look() -> InspectionAnswer:
        found = inspect_answer(model, Example(ids, response_ids), module.tokenizer, question="")
        return InspectionAnswer.of(found, model=module.name, finish_reason=reason)

    return await asyncio.wrap_future(serving.engine.run(look))  # the engine's thread is the one that computes


def _pair_of(module: Module, serving: State) -> CombinedModel:
    """The pair that a module is.

    Raises:
        ApiError: If it is none.
        UserError: If its bridge has no layer.
    """
    if module.model is None:
        pairs = ", ".join(other.name for other in serving.modules if other.model is not None)
        raise ApiError(
            400, f"model={module.name!r} reads no source, so there is no bridge to look into; choose one of {pairs}",
            param="model",
        )  # fmt: skip
    check_layers(module.model, module.name)
    return module.model


def _check_size(model: CombinedModel, prompt_len: int, max_tokens: int) -> None:
    """Refuse what would be more figures than anybody looks at.

    Raises:
        ApiError: Before anything is written.
    """
    num_read = prompt_len if model.config.visibility == "prompt" else prompt_len + max_tokens
    num_weights = model.config.num_cross_attention_layers * max_tokens * num_read
    if num_weights > MAX_WEIGHTS:
        raise ApiError(
            400, f"max_tokens={max_tokens} after a prompt of {prompt_len} tokens would be {num_weights} weights of "
            f"attention, more than the {MAX_WEIGHTS} of one response; ask for fewer tokens or shorten the prompt",
            param="max_tokens",
        )  # fmt: skip


def _as_chat(body: InspectionRequest) -> ChatRequest:
    """The same as a conversation to answer; likelihoods bring the tokens themselves."""
    return ChatRequest(model=body.model, messages=body.messages, max_tokens=body.max_tokens, logprobs=True)


async def _written(asked: Asked) -> tuple[list[int], str | None]:
    """Tokens of the answer, the one that ended it included, and why it ended."""
    tokens: list[int] = []
    reason = None
    async for piece in asked.pieces():
        tokens += [said.likelihood.token for said in piece.said]
        reason = piece.finish_reason or reason
    if reason == "stop":
        tokens.append(asked.job.module.tokenizer.eos_token_id)
    return tokens, reason
