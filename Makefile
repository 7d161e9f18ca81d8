# The product's front door: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
INTEROP := .venv-interop

export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
# An embedded Prefect server needs 11 to 15 s here; Prefect's own limit is 20 s.
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 120

.PHONY: help install demo test lint types unit interop plain-install clean

help: ## Say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $(STAMP)

install: $(STAMP) ## Make .venv with everything for development

demo: $(STAMP) ## Run the main job on the embedded sandbox, in both dialects
	@$(BIN)/prefect-qruntime demo

test: $(STAMP) lint types unit plain-install ## Run all checks and tests

lint: $(STAMP) ## Lint and check the format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## Check the types
	$(BIN)/mypy

unit: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest

$(INTEROP)/.installed: pyproject.toml constraints.txt tests/interop/constraints.txt
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[sandbox,qiskit]' \
	  qiskit-ibm-runtime hypothesis pytest pytest-asyncio pytest-timeout \
	  --constraint constraints.txt --constraint tests/interop/constraints.txt
	@touch $@

interop: $(INTEROP)/.installed ## Run IBM's official client against the sandbox
	$(INTEROP)/bin/python -m pytest tests/interop

plain-install: $(STAMP) ## Prove that a plain install gives a Prefect server that starts
	$(BIN)/python tests/plain_install.py

clean: ## Remove what was made
	rm -rf $(VENV) $(INTEROP) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site *.egg-info
