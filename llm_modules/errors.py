"""Errors that a user can act on: each message names the value, the rule and the way out."""


class UserError(ValueError):
    """Something the user gave cannot be used; the command line prints the message without a traceback."""


class MissingFileError(UserError, FileNotFoundError):
    """A file, folder or data set that the user named is not there."""


class SharedError(UserError):
    """One that every process of a launch meets: the first tells it."""
