"""`GET /v1/models`, and modules loaded and unloaded while the server runs."""

import asyncio
from functools import partial
from pathlib import Path

from fastapi import APIRouter

from llm_modules.errors import UserError
from llm_modules.serving.answers import ModelCard, ModelList, Unloaded
from llm_modules.serving.errors import ApiError
from llm_modules.serving.passing import in_passing_thread
from llm_modules.serving.requests import LoadRequest, UnloadRequest
from llm_modules.serving.state import Serving, State

router = APIRouter(tags=["modules"])


@router.get("/models")
async def models(serving: Serving) -> ModelList:
    """All modules, the source among them."""
    return ModelList(data=[ModelCard.of(module) for module in serving.modules])


@router.get("/models/{name}")
async def model(name: str, serving: Serving) -> ModelCard:
    """One module."""
    return ModelCard.of(serving.modules.get(name))


@router.post("/load_module")
async def load_module(body: LoadRequest, serving: Serving) -> ModelCard:
    """Load a module of this server's source from the folder that is allowed."""
    folder = _allowed(serving, body.path)
    load = partial(serving.modules.load, folder, body.name)
    return ModelCard.of(await asyncio.to_thread(in_passing_thread, load))  # asyncio's own threads stay


@router.post("/unload_module")
async def unload_module(body: UnloadRequest, serving: Serving) -> Unloaded:
    """Forget a module; answers that it is writing are finished."""
    _allowed(serving, ".")
    serving.modules.unload(body.name)
    return Unloaded(id=body.name)


def _allowed(serving: State, path: str) -> Path:
    """The folder meant, relative to the one that is allowed.

    Raises:
        ApiError: If none is allowed, or this one lies elsewhere, by a link perhaps.
        UserError: If there is no such folder.
    """
    if serving.loading_from is None:
        raise ApiError(
            403, "this server was not started with --allow-loading, so modules stay as they are", code="not_allowed"
        )
    if "\0" in path:
        raise UserError("path holds a zero byte; give the path of a module's folder")
    allowed = serving.loading_from.resolve()
    try:
        folder = (allowed / path).resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"path={path!r} is no path ({error}); give the path of a module's folder") from error
    if not folder.is_relative_to(allowed):
        raise ApiError(
            403, f"path={path!r} lies outside the folder that modules may be loaded from", code="not_allowed"
        )
    if not folder.is_dir():
        raise UserError(f"path={path!r} is no folder; give that of a saved module")
    return folder
