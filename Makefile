# flowledger's commands. Everything is set up below this folder (.venv, .flowledger); only package caches lie elsewhere.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo up test check lock schema docs bench soak clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(READY) ## set up .venv from the lock

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -oE '^uv==[0-9.]+' requirements.lock)"
	VIRTUAL_ENV=.venv $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

demo: $(READY) ## run the example flows on an embedded Postgres and print their ledger rows
	$(BIN)/python examples/demo.py

up: $(READY) ## embedded Postgres and a worker for the examples
	$(BIN)/flowledger up --project examples

test: $(READY) check ## everything that must hold before a change lands
	$(BIN)/python -m pytest

check: $(READY) ## format, lint, import contracts, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

lock: ## choose the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --upgrade \
	  --extra embedded --extra crewai --extra archive --group dev pyproject.toml --output-file requirements.lock

schema: $(READY) ## write the migration, the expected catalog and the schema pages that follow from sql/schema
	$(BIN)/python scripts/schema.py

docs: $(READY) ## write the reference pages that follow from the code
	$(BIN)/python scripts/reference_pages.py

bench: $(READY) ## measure, and print the figures as a table
	$(BIN)/python -m benchmarks

soak: $(READY) ## carry executions for ten minutes, and print how the worker's memory grew
	$(BIN)/python -m benchmarks.soak

clean: ## remove what was set up here
	rm -rf .venv .flowledger .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
