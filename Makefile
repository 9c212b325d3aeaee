# Needs python3 (3.11 or newer) and make; the first target that runs builds .venv from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
# What one process of the tests has compiled, the others read.
export PYTHONDONTWRITEBYTECODE :=
# Processes that share the tests, one thread each.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all lint format bench
.DELETE_ON_ERROR:

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*##  */\1\t/p' $(MAKEFILE_LIST) | sort | expand -t 12

venv: $(STAMP)  ## build the environment in .venv

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"lconvnet needs Python 3.11 or newer, found {v[0]}.{v[1]}: make PYTHON=python3.11" if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## train on the embedded digits, print and plot certified accuracy (about two minutes)
	$(BIN)/python examples/demo.py

test: lint  ## lint, types, doctests and fast tests (about five minutes on two cores)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

test-all: lint  ## the same with the slow tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m ""

lint: $(STAMP)  ## ruff and pyright, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(PEERS)  ## time against unconstrained networks and other libraries (about ten minutes on two cores)
	$(BIN)/python -m benchmarks

$(PEERS): benchmarks/requirements.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/requirements.txt
	@touch $@
