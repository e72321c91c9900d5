"""Draw `chat.svg`: a session of `llm-modules chat` in a real pseudo-terminal, as its user sees it.

python -m docs.chat_picture runs/demo/arithmetic/model runs/demo/facts/model
"""

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from tests.screen import Terminal

COLUMNS, ROWS = 104, 44
QUESTIONS = (
    "Find the remainder by dividing 7 by 4.",
    "/model facts",
    "What is the capital of Canada?",
    "/compare Which continent is Peru in?",
)
THEME = TerminalTheme(
    (253, 252, 249),
    (29, 33, 37),
    [
        (29, 33, 37),
        (165, 64, 28),
        (26, 107, 60),
        (138, 109, 0),
        (11, 92, 173),
        (122, 62, 143),
        (0, 112, 122),
        (98, 106, 114),
    ],
)
# rich's own form fetches its font from another host
FORM = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px;
}}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
<rect width="{width}" height="{height}" rx="8" fill="#fdfcf9" stroke="#dfdcd3"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def main(folders: list[str]) -> None:
    """Hold the session, and write the picture beside this file."""
    command = [sys.executable, "-m", "llm_modules.cli", "chat", *folders]
    with Terminal(command, columns=COLUMNS, rows=ROWS) as terminal:
        terminal.see(r"^\w+>")
        for number, question in enumerate(QUESTIONS, start=2):
            terminal.type(f"{question}\r")
            terminal.see(r"^\w+>", times=number)
        drawn = terminal.drawn()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(drawn)
    Path(__file__).with_name("chat.svg").write_text(console.export_svg(theme=THEME, code_format=FORM, unique_id="chat"))


if __name__ == "__main__":
    main(sys.argv[1:])
