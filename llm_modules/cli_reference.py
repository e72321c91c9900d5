"""`docs/cli.md`: every verb's own `--help` (`python -m llm_modules.cli_reference > docs/cli.md`)."""

from typer.main import get_group
from typer.testing import CliRunner

from llm_modules.cli import app

TERMINAL = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
TITLE = """# Command line

What `--help` says of each verb; made by `python -m llm_modules.cli_reference > docs/cli.md`, and a check keeps it true.
"""


def cli_page() -> str:
    """The page."""
    sections = [TITLE]
    for verb in ("", *get_group(app).commands):
        said = CliRunner().invoke(app, [*verb.split(), "--help"], prog_name="llm-modules", env=TERMINAL).output
        text = "\n".join(line.rstrip() for line in said.strip().splitlines())
        sections.append(f"## {f'llm-modules {verb}'.strip()}\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    print(cli_page(), end="")
