# `make check` is what CI runs first; the tools are pinned once, in pyproject.toml's `dev` extra.
PYTHON ?= python
PYTEST ?= pytest -n 2

.PHONY: check format lint types docs test chaos deep fake-cuda gpu

check: lint types docs test

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	lint-imports

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

types:
	$(PYTHON) -m mypy

# The site, in docs/_build/html. A link to a page, heading or file that is not there is an error.
docs:
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html

test:
	$(PYTEST)

# What models, drivers and people do wrong: misbehaving models, sweeps killed at random instants and resumed, and
# hostile command lines, cards, rows and checkpoints.  CI runs a part: make chaos KILLS=8 CASES=400
KILLS ?= 200
CASES ?= 10000
chaos: export LONGVIS_KILLS = $(KILLS)
chaos: export LONGVIS_CASES = $(CASES)
chaos:
	$(PYTHON) -m pytest -m "not fake_cuda" -s tests/chaos

# The long forms of all tests, those of chaos and fake-cuda included: an hour and more on 2 cores.
deep: export LONGVIS_KILLS = $(KILLS)
deep: export LONGVIS_CASES = $(CASES)
deep:
	$(PYTHON) -m pytest -m ""

# The CUDA paths without a GPU, as far as tests/fake_cuda/README.md says: needs gcc and torch's CUDA build.
# CI leaves the long forms out: make fake-cuda FAKE="fake_cuda and not slow"
FAKE ?= fake_cuda
fake-cuda:
	$(PYTEST) -m "$(FAKE)" tests/fake_cuda

# Acceptance run on a machine with an NVIDIA GPU: one JSON report, which a second run completes.
# Some checks only: make gpu ONLY=clock,scan
ONLY ?=
gpu:
	$(PYTHON) scripts/gpu_check.py gpu_check/report.json --only "$(ONLY)"
