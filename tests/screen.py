"""A program in a pseudo-terminal, and what its user sees there."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

import pyte
from rich.text import Text

GREY = (38, 2, 128, 137, 146)


class _Answering(pyte.Screen):
    """A terminal that answers where its cursor is, when it is asked."""

    def __init__(self, columns, rows, write):
        super().__init__(columns, rows)
        self.write_process_input = lambda text: write(text.encode())

    def select_graphic_rendition(self, *codes, **kwargs):
        """Faint, which pyte does not know, becomes grey."""
        if 2 in codes and not {38, 48} & {*codes}:
            codes = [part for code in codes for part in (GREY if code == 2 else (code,))]
        super().select_graphic_rendition(*codes, **kwargs)

    def report_device_status(self, mode=0, **kwargs):  # a private one is asked for, too
        super().report_device_status(mode)


class Terminal:
    """Starts a program; a `with` block ends it.

    Args:
        command: Program and arguments.
        columns: Width in signs.
        rows: Height in lines.
        env: Its environment.
    """

    def __init__(self, command, *, columns=100, rows=30, env=None):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        known = {name: value for name, value in (env or os.environ).items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env=known | {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )
        os.close(theirs)
        self.raw = b""
        self.screen = _Answering(columns, rows, lambda text: os.write(self._ours, text))
        self._stream = pyte.ByteStream(self.screen)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def type(self, text):
        """Press keys."""
        os.write(self._ours, text.encode())

    @property
    def text(self):
        """What stands on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def see(self, pattern, *, times=1, seconds=300):
        """Wait until the screen shows something, so many times at least; what it shows then."""
        deadline = time.monotonic() + seconds
        while len(re.findall(pattern, self.text, re.MULTILINE)) < times:
            assert time.monotonic() < deadline, f"never saw {pattern!r}:\n{self.text}"
            self._take(1.0)
        return self.text

    def leaves(self, seconds=300):
        """Wait for the end; the exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"does not end:\n{self.text}"
            self._take(0.1)
        return self.process.returncode

    def drawn(self):
        """The screen with its colours, down to the last line in use."""
        rows = [self._row(self.screen.buffer[row]) for row in range(self.screen.lines)]
        while rows and not rows[-1].plain.strip():
            rows.pop()
        return Text("\n").join(rows)

    def _row(self, cells):
        row = Text()
        for column in range(self.screen.columns):
            cell = cells[column]
            row.append(cell.data, _style(cell))
        return row

    def _take(self, seconds):
        if not select.select([self._ours], [], [], seconds)[0]:
            return
        try:
            got = os.read(self._ours, 65536)
        except OSError:  # the other end is closed
            return
        self.raw += got
        self._stream.feed(got)


def _style(cell):
    words = [
        name for name, given in (("bold", cell.bold), ("italic", cell.italics), ("reverse", cell.reverse)) if given
    ]
    colour = {"default": "", "brown": "yellow"}.get(cell.fg, f"#{cell.fg}" if len(cell.fg) == 6 else cell.fg)
    return " ".join([*words, colour.replace("bright", "bright_")]).strip()


def _take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
