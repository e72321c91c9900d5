"""`llm-modules serve`: from folders to a running server."""

import logging
import socket
import warnings
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from llm_modules.errors import UserError
from llm_modules.serving.app import create_app
from llm_modules.serving.limits import Limits
from llm_modules.serving.modules import Modules
from llm_modules.serving.passing import in_passing_thread
from llm_modules.serving.patience import patient_protocol

STOPPING_S = 30  # for answers that are being written when the server is told to stop
# Longer than clients keep an idle connection (OpenAI's: 5 s, which is also uvicorn's default; nginx: 60): closing it is
# theirs, because a request that crosses our closing on its way is answered by a reset.
IDLE_S = 75


def serve(
    models: Sequence[str],
    *,
    listener: socket.socket,
    api_key: str | None,
    origins: Sequence[str],
    loading_from: Path | None,
    limits: Limits,
) -> None:
    """Serve until told to stop.

    Args:
        models: `FOLDER` or `NAME=FOLDER` of each module.
        listener: What `listening` returned.
        api_key: What clients must show.
        origins: Of web pages elsewhere that may ask.
        loading_from: Folder that modules may be loaded from while running.
        limits: What is taken on.

    Raises:
        UserError: If a model cannot be served.
    """
    if loading_from is not None and not loading_from.is_dir():
        raise UserError(f"--allow-loading {loading_from} is no folder; give the one that holds the modules")
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if api_key is None and host not in ("127.0.0.1", "::1"):
        warnings.warn(f"{address} may be reached by others and asks for no key; give --api-key", stacklevel=2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # all that is computed later is computed in the engine's thread
    modules = in_passing_thread(lambda: Modules.open(models, max_shared_tokens=limits.max_shared_tokens))
    app = create_app(modules, limits=limits, api_key=api_key, origins=origins, loading_from=loading_from)
    print(f"{', '.join(module.name for module in modules)} at {address}/v1, a page at {address}/", flush=True)
    running_server(app).run(sockets=[listener])


def running_server(app: FastAPI) -> uvicorn.Server:
    """uvicorn, set as we need it."""
    config = uvicorn.Config(
        app,
        http=patient_protocol(app.state.serving.limits.stalled_s),
        log_config=None,
        log_level="warning",
        access_log=False,  # ours holds no query strings
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=STOPPING_S,
    )
    return uvicorn.Server(config)
