# `make check` is what CI runs first; the tools are pinned once, in pyproject.toml's `dev` extra.
PYTHON ?= python

.PHONY: check format lint types test deep

check: lint types test

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

# The long forms of the tests: minutes to an hour on 2 cores.
deep:
	$(PYTHON) -m pytest -m "slow or not slow"
