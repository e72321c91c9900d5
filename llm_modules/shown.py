"""How answers look in a terminal: Markdown as it is written, the thought dim; in a pipe the bare text."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.segment import Segment
from rich.spinner import Spinner
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from llm_modules.tasks.stratos import sections

MIN_COLUMN = 28  # signs; narrower answers stand one below the other
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def clean(text: str) -> str:
    """Text that cannot steer a terminal: control characters are replaced, line breaks and tabs kept."""
    return text.translate(_CONTROL)


def formatted(answer: str) -> RenderableType:
    """An answer, finished or not: its thought dim, all else as Markdown, without tags, and nothing in it a command."""
    parts: list[RenderableType] = []
    for name, text in sections(clean(answer)):
        part: RenderableType = Styled(Text(text), "dim") if name == "thought" else _markdown(text)
        parts.append(Padding(part, (1 if parts else 0, 0, 0, 0)))
    return Group(*parts)


class Screen:
    """Where answers and remarks are shown.

    Args:
        answers: In a terminal answers are formatted while they are written; in a pipe or file they stand as they are.
        remarks: All else; may be the same console.
    """

    def __init__(self, answers: Console, *, remarks: Console):
        self.answers, self.remarks = answers, remarks

    @property
    def is_live(self) -> bool:
        """Whether what was shown can be drawn anew."""
        return self.answers.is_terminal and not self.answers.is_dumb_terminal

    def remark(self, text: str, style: str = "dim") -> None:
        """A line that is no answer."""
        self.remarks.print(Text(clean(text), style), soft_wrap=not self.remarks.is_terminal)

    def stream(self, pieces: Generator[str, None, None]) -> None:
        """Show one answer as it is written; what was written stays, whatever ends it."""
        if not self.is_live:
            self._write(pieces)
            return
        text = ""
        with self._live() as live, closing(pieces):
            try:
                for piece in pieces:
                    text += piece
                    live.update(_Tail(formatted(text)))
            finally:
                live.update(formatted(text))

    def beside(self, answers: Mapping[str, Generator[str, None, None]], *, remark: Callable[[str], str]) -> None:
        """Show several answers side by side, one written after the other.

        Args:
            answers: By name.
            remark: What to say of a name when its answer is finished.
        """
        if not self.is_live:
            for name, pieces in answers.items():
                self.answers.file.write(f"{name}:\n")
                self._write(pieces)
                self.remark(remark(name))
            return
        texts, remarks = dict.fromkeys(answers, ""), dict.fromkeys(answers, "")
        with self._live() as live:
            try:
                for name, pieces in answers.items():
                    with closing(pieces):
                        for piece in pieces:
                            texts[name] += piece
                            live.update(_Tail(self._columns(texts, remarks)))
                    remarks[name] = remark(name)
            finally:
                live.update(self._columns(texts, remarks))

    def _live(self) -> Live:
        waiting = Spinner("dots", Text("reading", "dim"), style="dim")
        return Live(waiting, console=self.answers, refresh_per_second=12, vertical_overflow="crop")

    def _write(self, pieces: Generator[str, None, None]) -> None:
        with closing(pieces):
            for piece in pieces:
                self.answers.file.write(piece)
                self.answers.file.flush()
        self.answers.file.write("\n")

    def _columns(self, texts: Mapping[str, str], remarks: Mapping[str, str]) -> RenderableType:
        """A column each, or where they would be too narrow one below the other."""
        names = [Text(clean(name), "bold") for name in texts]
        cells = [Group(formatted(texts[name]), Text(clean(remarks[name]), "dim")) for name in texts]
        if self.answers.width // len(names) < MIN_COLUMN:
            return Group(*(Group(name, cell) for name, cell in zip(names, cells, strict=True)))
        table = Table.grid(expand=True, padding=(0, 2, 0, 0))
        for _ in names:
            table.add_column(ratio=1)
        table.add_row(*names)
        table.add_row(*cells)
        return table


class _Tail:
    """The last lines of something, as many as the terminal has: what is above them cannot be drawn anew."""

    def __init__(self, whole: RenderableType):
        self.whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.whole, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()


def _markdown(text: str) -> Markdown:
    """As rich draws it, except that line breaks are kept, tags are text, and a link shows where it leads."""
    drawn = Markdown("", code_theme="ansi_dark", hyperlinks=False)
    drawn.parsed = _PARSER.parse(text)
    for token in drawn.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return drawn
