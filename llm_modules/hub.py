"""Fetching from the model hub, where one can be reached."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from llm_modules.errors import UserError


def fetch(name: str, *, revision: str | None = None, otherwise: str = "give the folder", **kwargs: Any) -> Path:
    """Fetch a repository, or take what an earlier fetch left; the local folder.

    Args:
        name: `owner/name` on the hub.
        revision: Branch, tag or commit.
        otherwise: What the user may do in place of fetching, for the error.
        **kwargs: Passed on to `huggingface_hub.snapshot_download`.

    Raises:
        UserError: If it cannot be reached or does not exist.
    """
    try:
        return Path(snapshot_download(name, revision=revision, **kwargs))
    except Exception as error:  # the hub client raises errors of several libraries
        raise UserError(
            f"{name!r} is no local folder and could not be fetched from the hub ({type(error).__name__}); offline, "
            f"fetch it where there is a network (`hf download {name}`) and {otherwise}"
        ) from error
