"""What the docs tell a reader to type works, and the notebook runs."""

import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from typer.main import get_group

from llm_modules.cli import app
from llm_modules.cli_reference import cli_page

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def commands_of(page):
    """What is typed on a page, a word each; comments and what follows a pipe left out."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return [shlex.split(line.partition(" | ")[0], comments=True) for line in lines if line.startswith("llm-modules ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_are_accepted_and_their_recipes_are_there(page):
    group = get_group(app)
    for _, verb, *words in commands_of(page):
        group.commands[verb].make_context(verb, list(words))
        for word in words:
            assert not word.startswith(("recipes/", "sweeps/")) or (ROOT / word).is_file(), word


def test_every_verb_has_a_page_and_the_reference_says_what_help_says():
    shown = {
        words[1] for page in (ROOT / "docs" / "how-to").iterdir() if page.suffix == ".md" for words in commands_of(page)
    }
    assert set(get_group(app).commands) - shown == {"demo"}  # `make demo`, on the first page
    page = ROOT / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == cli_page(), "run: python -m llm_modules.cli_reference > docs/cli.md"


def test_notebook_runs_top_to_bottom(default_source, tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "the same answer from the copy, on the same source" in said
