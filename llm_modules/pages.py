"""What all reports share: tables of figures, and templates that no text of a model can break."""

import base64
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

WIDTH = 110
"""Columns of a terminal that reports are laid out for."""


@dataclass(frozen=True)
class Cell:
    """A figure, and in `note` how sure it is."""

    text: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Table:
    """A title, a header and rows; the first column names the row, all others are figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def plain(self) -> str:
        """Aligned columns without lines."""
        grid = [list(self.header), *([str(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        lines = [
            "  ".join([name.ljust(widths[0]), *map(str.rjust, figures, widths[1:])]).rstrip() for name, *figures in grid
        ]
        return "\n".join([self.title, *(f"  {line}" for line in lines)])


def share(estimate: Mapping[str, Any], *, decimals: int = 1) -> Cell:
    """A share with its `interval`, in hundredths."""
    low, high = (f"{bound * 100:.{decimals}f}" for bound in estimate["interval"])
    return Cell(f"{estimate['value']:.1%}", f"{low}–{high}")


def templates(filters: Mapping[str, Callable] | None = None) -> Environment:
    """The package's templates: HTML is escaped by itself, Markdown by the filter `markdown`; unknown names fail."""
    environment = Environment(
        loader=PackageLoader("llm_modules"),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"markdown": escape_markdown, **(filters or {})}
    return environment


def escape_markdown(text: str) -> str:
    """Text for a Markdown table cell in which nothing is markup: no column, tag, link, emphasis or formula begins."""
    return re.sub(r"([\\`*_\[\]<>|~!&$:@])", r"\\\1", " ".join(text.split()))


def embedded(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Pictures of a folder as a page holds them: name to base64."""
    return {name: base64.b64encode((folder / name).read_bytes()).decode() for name in names}


def bullets(sentences: Iterable[str]) -> str:
    """Sentences for a terminal, an item each."""
    fill = textwrap.TextWrapper(WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False).fill
    return "\n".join(map(fill, sentences))
