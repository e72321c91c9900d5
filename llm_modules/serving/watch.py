"""What every request passes: the access log, without prompts, and bounds to how much and how slowly a client sends."""

import asyncio
import logging
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_modules.serving.limits import Limits
from llm_modules.serving.metrics import Metrics

MOST_DISCARDED = 32  # times the largest body: read and dropped, so that the client comes to hear why
logger = logging.getLogger("llm_modules.serving.access")


class Watch:
    """Logs a line a request, counts it, and gives up bodies that do not come or do not end.

    The line holds no text of anybody's: who, method, path, status, seconds, and which module wrote how many tokens.

    Args:
        app: What answers.
        metrics: Counted here.
        paths: Those that are told apart in the counters; others are clients' inventions.
        limits: Of bodies, and of the wait for each part of one.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str], limits: Limits):
        self._app, self._metrics, self._paths, self._limits = app, metrics, paths, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, size, whole = time.perf_counter(), 0, 0, False

        async def receive_within_limits() -> Message:
            nonlocal size, whole
            if whole:  # from here on only the client's going is waited for
                return await receive()
            while True:
                try:
                    message = await asyncio.wait_for(receive(), self._limits.stalled_s)
                except TimeoutError:
                    raise HTTPException(408, "the rest of the body did not come; send it in one go") from None
                size += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if size <= self._limits.max_body_bytes:
                    return message
                if whole or size > MOST_DISCARDED * self._limits.max_body_bytes:
                    raise HTTPException(413)

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive_within_limits, send_noting)
        except Exception:
            status = status or 500  # it is answered further out
            raise
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.responses.labels(path, status).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        client = scope.get("client") or ("-",)
        shown = scope["path"] if path != "other" else "(another path)"  # a path can hold anything
        logger.info("%s %s %s %s %.3f s%s", client[0], scope["method"], shown, status or "-", seconds, _written(scope))


def _written(scope: Scope) -> str:
    asked: Any = scope.get("state", {}).get("asked")
    if asked is None:
        return ""
    return f" model={asked.job.module.name} prompt={len(asked.job.prompt_ids)} written={asked.num_written}"
