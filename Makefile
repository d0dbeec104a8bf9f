# flowledger's commands. Everything is set up below this folder (.venv, .flowledger); only package caches lie elsewhere.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# What breaks machines and measures patience: most of it waits, so two of them go side by side.
PATIENT := tests/faults tests/survival
# Fills both cores by itself.
ALONE := tests/chaos

SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo up test check packages chaos contract soak bench lock schema docs clean

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

test: $(READY) check packages ## everything that must hold before a change lands
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(addprefix --ignore=,$(PATIENT) $(ALONE))
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(PATIENT)
	$(BIN)/python -m pytest $(ALONE)

# Of the system: a pooler, which is not started as a service, and a browser.
packages:
	@missing=$$(PATH="$$PATH:/usr/sbin"; for one in pgbouncer chromium; do command -v $$one >/dev/null || echo $$one; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	else \
	  echo "not installed, and the tests that need them are skipped: $$missing" >&2; \
	fi

chaos: $(READY) ## let everything go wrong for five minutes with five seeds, 50 rounds of fencing, a storm of requests
	FENCING_ROUNDS=50 $(BIN)/python -m pytest tests/faults/test_fencing.py -s
	STORM_REQUESTS=10000 $(BIN)/python -m pytest tests/walls/test_storm.py -s
	$(BIN)/python -m tests.chaos --seconds 300 --seeds 5

contract: $(READY) ## ask every operation of the API hundreds of times, as a user, an operator and nobody
	CONTRACT_EXAMPLES=300 $(BIN)/python -m pytest tests/api/test_contract.py --timeout 3600 -s

check: $(READY) ## format, lint, import contracts, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

lock: ## choose the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --upgrade \
	  --extra embedded --extra crewai --extra archive --extra otel --group dev pyproject.toml --output-file requirements.lock

schema: $(READY) ## write the migration, the expected catalog and the schema pages that follow from sql/schema
	$(BIN)/python scripts/schema.py

docs: $(READY) ## write openapi.json, the reference pages and the synchronous client, which follow from the code
	$(BIN)/python scripts/reference_pages.py
	$(BIN)/python scripts/openapi.py
	$(BIN)/python scripts/synchronous.py

bench: $(READY) ## measure, and print the figures as a table
	$(BIN)/python -m benchmarks

soak: $(READY) ## carry executions for ten minutes, and print how the worker's memory grew
	$(BIN)/python -m benchmarks.soak

clean: ## remove what was set up here
	rm -rf .venv .flowledger .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
