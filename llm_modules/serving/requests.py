"""What clients may send; fields that are not known here are ignored, as OpenAI's own clients need it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints

MAX_ANSWERS = 8  # to one prompt
MAX_STOPS = 4
MAX_LIKELIHOODS = 20
SEEDS = 2**63


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Stop = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=256)]],
    Field(max_length=MAX_STOPS),
]


class TextPart(BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


def _only_text(content: Any) -> Any:
    parts = content if isinstance(content, list) else []
    for part in parts:
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
            raise ValueError(f"a part of type {part['type'][:64]!r} is not understood, only text is; leave it out")
    return content


class Message(BaseModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart], BeforeValidator(_only_text, json_schema_input_type=str | list[TextPart])]

    def as_turn(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool = False


class _Request(BaseModel):
    """What both kinds of completions share."""

    model: Name
    max_tokens: Count | None = None
    temperature: float | None = Field(
        None, ge=0, le=2, description="0, which is the default, takes the likeliest word."
    )
    top_p: float | None = Field(None, ge=0, le=1, description="0 takes the likeliest word.")
    top_k: int | None = Field(None, ge=0, le=1_000_000_000, description="0 for all words.")
    stop: Annotated[Stop | None, BeforeValidator(_listed, json_schema_input_type=str | Stop | None)] = None
    seed: int | None = Field(None, ge=-SEEDS, lt=SEEDS)
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Request):
    """Of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LIKELIHOODS)

    @property
    def num_likelihoods(self) -> int | None:
        """How many likeliest tokens to tell beside each; `None` to tell nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """Of `POST /v1/completions`."""

    prompt: (
        Annotated[str, StringConstraints(min_length=1)]
        | Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LIKELIHOODS)

    @property
    def num_likelihoods(self) -> int | None:
        """How many likeliest tokens to tell beside each; `None` to tell nothing."""
        return self.logprobs


class LoadRequest(BaseModel):
    """Of `POST /v1/load_module`."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    name: Name | None = None


class UnloadRequest(BaseModel):
    """Of `POST /v1/unload_module`."""

    name: Name
