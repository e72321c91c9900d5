"""Errors that a user can act on: each message names the value, the rule and the way out."""

import os


class UserError(ValueError):
    """Something the user gave cannot be used; the command line prints the message without a traceback."""


class MissingFileError(UserError, FileNotFoundError):
    """A file, folder or data set that the user named is not there."""


class UnwritableError(UserError, OSError):
    """A disk that is full or refuses.

    Args:
        message: What the user is told.
        code: The system's number of the error (`errno`).
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.errno, self.strerror, self._message = code, os.strerror(code), message

    def __str__(self) -> str:
        return self._message


class SharedError(UserError):
    """One that every process of a launch meets: the first tells it."""
