"""What clients get, as OpenAI's clients read it."""

import uuid
from itertools import accumulate
from typing import Literal

from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from llm_modules.serving.drawing import Likelihood
from llm_modules.serving.jobs import Said
from llm_modules.serving.modules import Module

FinishReason = Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, num_prompt: int, num_written: int) -> "Usage":
        """Of a request."""
        return cls(prompt_tokens=num_prompt, completion_tokens=num_written, total_tokens=num_prompt + num_written)


class TopLogprob(BaseModel):
    """A token and its likelihood."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The same of a token that was written."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Likelihoods of an answer's tokens."""

    content: list[TokenLogprob]

    @classmethod
    def of(cls, said: list[Said], tokenizer: PreTrainedTokenizerBase) -> "ChatLogprobs":
        """Spelled."""

        def spelled(likelihood: Likelihood) -> dict:
            token = tokenizer.decode([likelihood.token])
            return {"token": token, "logprob": likelihood.logprob, "bytes": list(token.encode())}

        return cls(
            content=[
                TokenLogprob(
                    **spelled(one.likelihood), top_logprobs=[TopLogprob(**spelled(other)) for other in one.others]
                )
                for one in said
            ]
        )


class TextLogprobs(BaseModel):
    """The same in the form of `/v1/completions`."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]

    @classmethod
    def of(cls, said: list[Said], tokenizer: PreTrainedTokenizerBase, *, offset: int) -> "TextLogprobs":
        """Spelled; `offset` is where the text of the first begins."""
        tokens = [tokenizer.decode([one.likelihood.token]) for one in said]
        offsets = list(accumulate(map(len, tokens), initial=offset))[:-1]
        others = [{tokenizer.decode([other.token]): other.logprob for other in one.others} for one in said]
        logprobs = [one.likelihood.logprob for one in said]
        return cls(tokens=tokens, token_logprobs=logprobs, top_logprobs=others, text_offset=offsets)


class ChatMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """All answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One of the continuations."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None


class TextCompletion(BaseModel):
    """All continuations of a text; in a stream, a piece of one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None


class Delta(BaseModel):
    """What a piece adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """To which answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """A piece of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """A module that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llm-modules"
    parent: str | None = None
    root: str

    @classmethod
    def of(cls, module: Module) -> "ModelCard":
        """Of a loaded one."""
        return cls(id=module.name, created=module.created, parent=module.parent, root=module.parent or module.name)


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Unloaded(BaseModel):
    """What was forgotten."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class Health(BaseModel):
    """That the server is there."""

    status: Literal["ok"] = "ok"


def new_id(kind: str) -> str:
    """An id of a response."""
    return f"{kind}-{uuid.uuid4().hex}"
