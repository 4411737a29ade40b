# Two commands do all the set-up: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-slow lint clean

train: .venv/installed
	$(BIN)/atent train digits-linf-atent --baseline

test: .venv/installed-dev
	$(BIN)/python -m pytest

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
