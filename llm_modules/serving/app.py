"""The HTTP application: routes, errors and everything that stands around them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from llm_modules.serving import completions, inspecting, listing, upkeep
from llm_modules.serving.engine import Engine
from llm_modules.serving.errors import ErrorAnswer, handle_errors_
from llm_modules.serving.keys import require_key
from llm_modules.serving.limits import Limits
from llm_modules.serving.metrics import Metrics
from llm_modules.serving.modules import Modules
from llm_modules.serving.page_files import PageFiles
from llm_modules.serving.state import State
from llm_modules.serving.watch import Watch

ROUTERS: tuple[APIRouter, ...] = (completions.router, listing.router, inspecting.router)  # under /v1, behind the key
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": meaning}
    for status, meaning in {
        400: "The request cannot be taken as it is.",
        401: "The API key is missing or wrong.",
        403: "Not allowed here.",
        404: "There is no such module.",
        408: "The body did not come.",
        413: "The body is too large.",
        429: "Too many requests wait.",
        503: "Stopping, or not finished in time.",
    }.items()
}


def create_app(
    modules: Modules,
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    origins: Sequence[str] = (),
    loading_from: Path | None = None,
) -> FastAPI:
    """The application over some modules; its engine runs as long as it does.

    Args:
        modules: What is served.
        limits: What is taken on.
        api_key: What clients must show; `None`: nothing.
        origins: Of web pages elsewhere that may ask; `*` for any.
        loading_from: Folder that modules may be loaded from while running; `None`: none may.
    """
    limits, metrics = limits or Limits(), Metrics()
    engine = Engine(max_at_once=limits.max_at_once, max_waiting=limits.max_waiting, metrics=metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with engine:
            yield

    app = FastAPI(
        title="llm-modules",
        summary="Many small modules on one source, as OpenAI's clients ask for them.",
        lifespan=lifespan,
        docs_url=None,  # its page would load from other hosts
        redoc_url=None,
    )
    app.state.serving = State(modules, engine, limits, metrics, api_key=api_key, loading_from=loading_from)
    handle_errors_(app)
    app.include_router(upkeep.router)
    for router in ROUTERS:
        app.include_router(router, prefix="/v1", dependencies=[Depends(require_key)], responses=REFUSALS)
    paths = frozenset(path for path in app.openapi()["paths"] if "{" not in path)
    _without_422_(app)
    app.mount("/", PageFiles())
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Watch, metrics=metrics, paths=paths | {"/"}, limits=limits)
    return app


def _without_422_(app: FastAPI) -> None:
    """FastAPI documents a status that is never answered here: what it refuses is a 400, as OpenAI's is."""
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
