# make repro: environment + whole pipeline.  make test: environment + tests.  Everything else is `dvc` and `framefold`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := repro

PYTHON ?= python3
VENV := .venv
# The stamp's name carries what the environment was made from, and where: a second call starts at once, a changed lock does not.
KEY := $(shell { cat requirements.lock pyproject.toml; echo "$(CURDIR)"; } | sha256sum | cut -c 1-16)
STAMP := $(VENV)/.ready-$(KEY)
# Stages are started as `python -m stages.<name>`: that python must be the environment's.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: setup repro test test-slow bench lint

setup: $(STAMP)

$(STAMP):
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed; make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	rm -f $(VENV)/.ready-*
	touch $@

repro: setup
	framefold repro --jobs 2

test: setup
	python -m pytest
	python -m pytest -n 2 -m "medium and not slow"

test-slow: setup
	python -m pytest
	python -m pytest -n 0 -m "medium or slow"

bench: setup
	python -m benchmarks.run

lint: setup
	ruff check .
	ruff format --check .
	mypy
