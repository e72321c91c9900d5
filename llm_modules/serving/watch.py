"""What passes by every request: the access log, without prompts, and patience with clients that is not endless."""

import asyncio
import logging
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_modules.serving.metrics import Metrics

logger = logging.getLogger("llm_modules.serving.access")


class Watch:
    """Logs a line a request, counts it, and gives up bodies that do not come.

    The line holds no text of anybody's: who, method, path, status, seconds, and which module wrote how many tokens.

    Args:
        app: What answers.
        metrics: Counted here.
        paths: Those that are told apart in the counters; others are clients' inventions.
        timeout_s: For each part of a body.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str], timeout_s: float):
        self._app, self._metrics, self._paths, self._timeout_s = app, metrics, paths, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, whole = time.perf_counter(), 0, False

        async def receive_in_time() -> Message:
            nonlocal whole
            if whole:  # from here on only the client's going is waited for
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._timeout_s)
            except TimeoutError:
                raise HTTPException(408, "the rest of the body did not come; send it in one go") from None
            whole = not message.get("more_body", False)
            return message

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive_in_time, send_noting)
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
