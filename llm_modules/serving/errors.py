"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from llm_modules.errors import UserError
from llm_modules.serving.engine import ClosedError, FullError, LateError
from llm_modules.serving.modules import UnknownModuleError

logger = logging.getLogger(__name__)


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every response that is an error."""

    error: ErrorBody


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: Of HTTP.
        message: What, why, and the way out.
        code: For programs.
        param: The field at fault.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    @property
    def answer(self) -> ErrorAnswer:
        """The body of its response."""
        return ErrorAnswer(
            error=ErrorBody(message=self.message, type=_type_of(self.status), param=self.param, code=self.code)
        )

    def response(self) -> JSONResponse:
        """Its response."""
        return JSONResponse(self.answer.model_dump(), self.status, headers=self.headers)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of any error; what is not its business stays in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnknownModuleError):
        return ApiError(404, str(error), code="model_not_found", param="model")
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if isinstance(error, FullError):
        return ApiError(
            429, "as many requests wait as this server lets wait; try again in a second", code="queue_full",
            headers={"Retry-After": "1"},
        )  # fmt: skip
    if isinstance(error, LateError):
        return ApiError(
            503, "the answer was not finished in the time this server allows; ask for fewer tokens, or try again later",
            code="timeout", headers={"Retry-After": "1"},
        )  # fmt: skip
    if isinstance(error, ClosedError):
        return ApiError(503, "this server is stopping; try another", code="stopping", headers={"Retry-After": "5"})
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def handle_errors_(app: FastAPI) -> None:
    """Have every error answered in OpenAI's shape."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        if first["type"] == "json_invalid":
            return ApiError(
                400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
            ).response()
        where = ".".join(place)
        told = first["msg"].removeprefix("Value error, ")
        return ApiError(400, f"{where or 'the body'}: {told}", param=where or None).response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            404: f"there is no {request.url.path} here",
            405: f"there is no {request.method} {request.url.path} here",
            413: "the body is larger than this server takes",
        }
        told = message.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, told, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    for kind in (ApiError, UserError, FullError, LateError, ClosedError):
        app.exception_handler(kind)(failed)


def _type_of(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
