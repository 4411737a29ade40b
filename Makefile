# Two commands do all the set-up: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Test processes at once, with one thread each.
WORKERS ?= 2
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Threads that spin while they wait slow down whatever else runs.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: train test test-slow lint clean

train: .venv/installed
	$(BIN)/atent train digits-linf-atent --baseline

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
