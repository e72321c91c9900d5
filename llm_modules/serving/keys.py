"""Who may ask."""

import secrets
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from llm_modules.serving.errors import ApiError
from llm_modules.serving.state import Serving

_bearer = HTTPBearer(auto_error=False, description="The key that the server was started with, if any.")


def require_key(
    serving: Serving, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None
) -> None:
    """Let nobody pass who does not show the server's key.

    Raises:
        ApiError: If it is missing or wrong.
    """
    if serving.api_key is None:
        return
    given = "" if shown is None else shown.credentials
    if not secrets.compare_digest(given.encode(), serving.api_key.encode()):  # takes as long however much is right
        raise ApiError(
            401, "the API key is missing or wrong; send 'Authorization: Bearer KEY'", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
