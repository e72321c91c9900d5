"""`GET /health` and `GET /metrics`, for those who keep the server running; no key is asked."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from llm_modules.serving.answers import Health
from llm_modules.serving.state import Serving

router = APIRouter(tags=["upkeep"])


@router.get("/health")
async def health() -> Health:
    """That the server answers."""
    return Health()


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(serving: Serving) -> Response:
    """Counters, as Prometheus reads them."""
    serving.metrics.source_read.set(serving.modules.shared.num_read)
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE_LATEST)
