# Two commands do all the set-up: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Test processes at once, with one thread each.
WORKERS ?= 2
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Threads that spin while they wait slow down whatever else runs.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: train test test-slow soak lint docs coverage release clean

train: .venv/installed
	$(BIN)/atent train digits-linf-atent --baseline

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow --timeout 3600

# An hour of kills at random moments; what each command leaves must equal an undisturbed one.
soak: .venv/installed-dev
	$(BIN)/python benchmarks/soak.py --minutes 60

lint: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "written: docs/_build/html/index.html"

# The tests, and the share of the lines of src/ that they run; it fails below 92 %.
coverage: .venv/installed-coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report term:skip-covered

release: .venv/installed-release
	benchmarks/release.sh $(BIN)/python

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) -e '.[dev]'
	touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) -e '.[docs]'
	touch $@

.venv/installed-coverage: .venv/installed-dev
	$(INSTALL) -e '.[coverage]'
	touch $@

.venv/installed-release: .venv/installed
	$(INSTALL) -e '.[release]'
	touch $@

clean:
	rm -rf .venv build dist docs/_build docs/_generated docs/api .pytest_cache .ruff_cache .mypy_cache .coverage
