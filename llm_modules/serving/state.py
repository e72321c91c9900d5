"""What every route of one server shares."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from llm_modules.serving.engine import Engine
from llm_modules.serving.limits import Limits
from llm_modules.serving.metrics import Metrics
from llm_modules.serving.modules import Modules


@dataclass(frozen=True)
class State:
    """Of one server.

    Args:
        modules: What is served.
        engine: Writes.
        limits: What is taken on.
        metrics: What is counted.
        api_key: What clients must show; `None`: nothing.
        loading_from: Folder that modules may be loaded from while running; `None`: none may.
    """

    modules: Modules
    engine: Engine
    limits: Limits
    metrics: Metrics
    api_key: str | None = None
    loading_from: Path | None = None


def state_of(request: Request) -> State:
    """The server's that a request came to."""
    state: State = request.app.state.serving
    return state


Serving = Annotated[State, Depends(state_of)]
