# The daily commands; `make` alone lists them. Needs GNU make and Python 3.11 or later.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 5000
BIN = $(VENV)/bin

export MLFLOW_DISABLE_TELEMETRY := true

# Only our own .venv is ever made or removed; an environment that someone points to is used as it is.
ifeq ($(VENV),.venv)
READY := .venv/.stamp
else
READY :=
export PYTHONPATH := $(CURDIR)/src
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types unit bench docs ui clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PYTHON=$(PYTHON) makes .venv; VENV=$(VENV) is used, another one as it is; PORT=$(PORT) for ui."

setup: $(READY) ## .venv with the locked versions; made again when the lock or pyproject.toml changes

.venv/.stamp: requirements.lock pyproject.toml
	rm -rf .venv
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -qq --disable-pip-version-check --editable '.[dev]' --constraint requirements.lock
	touch $@

demo: setup ## build the embedded window, train and test a U-Net on it
	$(BIN)/python train.py

test: lint types unit ## all checks: ruff, mypy, pytest

lint: setup ## ruff
	$(BIN)/ruff check .

types: setup ## mypy, strict, on the package and the entry points
	$(BIN)/mypy

unit: setup ## pytest, on up to four processors
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4

bench: setup ## time each stage beside its peers, as a table; takes long, on an idle machine
	$(BIN)/python -m benchmarks

docs: setup ## the documentation as a website below docs/_build/html
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build/html

ui: setup ## browse the runs in MLflow at http://127.0.0.1:5000 (see PORT)
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --port $(PORT)

clean: ## remove caches and build leftovers; .venv, data, runs and results stay
	rm -rf build dist docs/_build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
