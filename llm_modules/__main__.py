"""`python -m llm_modules`: the command line, where a launcher such as torchrun wants a module."""

from llm_modules.cli import app

app()
