"""What a server takes on, so that no client can make it fall."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Args:
        max_at_once: Answers written side by side.
        max_waiting: Requests that wait for a place; more are refused.
        max_prompt_tokens: Of a request.
        max_new_tokens: Of an answer; also what it may have where the request does not say.
        max_body_bytes: Of a request.
        timeout_s: From a request's arrival to its last token.
        stalled_s: For a client to send or take anything.
        max_shared_tokens: Of late prompts, of which is kept what the source said.
    """

    max_at_once: int = 32
    max_waiting: int = 64
    max_prompt_tokens: int = 4096
    max_new_tokens: int = 1024
    max_body_bytes: int = 1_000_000
    timeout_s: float = 300.0
    stalled_s: float = 30.0
    max_shared_tokens: int = 8192
