"""What a user types: in a terminal with history and several lines, from a pipe line by line."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeAlias

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import NestedCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from llm_modules.errors import UserError
from llm_modules.files import state_folder

Read: TypeAlias = Callable[[str], str]
"""Gives what is typed after a prompt; raises EOFError where nothing follows, KeyboardInterrupt for Ctrl-C."""


def reader(completions: dict[str, dict[str, None] | None]) -> Read:
    """What to read questions with: an editor where a person sits at both ends, else the lines of standard input.

    Args:
        completions: First words, and what may follow each.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _editor(completions)
    lines = joined_lines(sys.stdin)

    def read(_: str) -> str:
        for line in lines:
            return line
        raise EOFError

    return read


def _editor(completions: dict[str, dict[str, None] | None]) -> Read:
    """Enter sends; Alt-Enter, or Enter after a backslash, begins a new line; arrows go through the history."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    session: PromptSession[str] = PromptSession(
        history=_history(),
        multiline=True,
        key_bindings=keys,
        completer=NestedCompleter.from_nested_dict(completions),
        complete_while_typing=False,
        prompt_continuation=lambda width, *_: "·".rjust(width - 1),
        reserve_space_for_menu=4,
    )
    return lambda prompt: session.prompt([("bold", prompt)])


def _history() -> History:
    """What was asked before, in a file that only its user reads; none where there can be no such file."""
    file = state_folder() / "chat-history"
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.open("ab").close()  # may be there and not ours
        return FileHistory(file)
    return InMemoryHistory()


def joined_lines(stream: Iterable[str]) -> Iterator[str]:
    """Lines, joined where one ends with a backslash.

    Raises:
        UserError: If the input is no text.
    """
    begun: list[str] = []
    try:
        for line in stream:
            text = line.rstrip("\n")
            text.encode()  # some locales let bytes through that are no text
            if text.endswith("\\"):
                begun.append(text[:-1])
            else:
                yield "\n".join([*begun, text])
                begun = []
    except UnicodeError as error:
        raise UserError(f"standard input is no text ({error}); give it in UTF-8") from error
    if begun:
        yield "\n".join(begun)
