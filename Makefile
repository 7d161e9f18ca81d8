# The product's front door: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
INTEROP := .venv-interop
# Processes that share the tests; each has a Prefect server of its own.
WORKERS ?= 3
NAME ?= run_circuits
TESTS ?= tests/unit tests/flows
DOCS := .venv-docs
UI := .venv-ui
BENCH := .venv-bench
FLOOR := .venv-floor
RAY := .venv-ray
# Unit tests that compare with nothing of Qiskit's or numpy's, need no Prefect server, and wait for no hostile one.
QUICK := $(filter-out %/test_http_hostile.py %/test_spool.py %/test_cli_without_server.py, \
         $(wildcard tests/unit/test_*.py tests/unit/client/test_*.py tests/unit/client/transport/test_*.py)) \
         tests/unit/diagnostics tests/unit/observability tests/unit/operations tests/unit/client/waiting
# What decides about money and polling is pure, so every branch of it can be tried.
CORES := */client/waiting/plan.py,*/client/waiting/job_list.py,*/client/failures.py,*/client/submission_core.py,*/client/cost_core.py,*/operations/usage_core.py,*/client/submission_keys.py,*/admission/budget_core.py,*/admission/share_core.py

export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
# Modules are compiled once, not in each of the hundreds of processes that tests start, whatever the caller's shell says.
export PYTHONDONTWRITEBYTECODE :=
# An embedded Prefect server needs 11 to 15 s here; Prefect's own limit is 20 s.
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 120

.PHONY: notebooks help install demo flow quick test lint types unit floor interop-client interop postgres-test ray-test prefect-faults docs ui-test pictures plain-install bench bench-quick clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $(STAMP)

install: $(STAMP) ## Make .venv with everything for development

# What runs flows: the developers' environment if it is there, else one with what a flow needs.
RUN := $(if $(wildcard $(STAMP)),$(VENV),.venv-run)

.venv-run/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed")'
	test -x .venv-run/bin/python || $(PYTHON) -m venv .venv-run
	.venv-run/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[sandbox]' --constraint constraints.txt
	@touch $@

demo: $(RUN)/.installed ## Run the main job on the embedded sandbox, in both dialects
	@$(RUN)/bin/prefect-qruntime demo

flow: $(RUN)/.installed ## Run one of the flows on the embedded sandbox: make flow NAME=vqe_session
	@$(RUN)/bin/python flows/$(NAME).py
	@echo 'flows/$(NAME).py ran on the embedded sandbox. On a QPU it runs with credentials_block="NAME"; see docs/examples.md.'

quick: $(STAMP) lint types ## Lint, check the types and run the pure unit tests, in a minute
	$(BIN)/python -m pytest -q -n 4 --dist loadfile $(QUICK)

test: $(STAMP) lint types unit plain-install ## Run all checks and tests, and measure the coverage

lint: $(STAMP) ## Lint, check the format and the spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# The package with its flows inside, as it is installed: from the clone the checker could not follow what flows import.
types: $(STAMP) ## Check the types
	@rm -rf .types && mkdir .types && cp -Rp prefect_qruntime .types/ && cp -Rp flows .types/prefect_qruntime/flows
	cd .types && ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache prefect_qruntime ../tests/typing

unit: $(STAMP) ## Run the tests and report the coverage of branches
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 25 --cov --cov-report=
	$(BIN)/coverage report
	$(BIN)/coverage report --include='$(CORES)' --fail-under=100

$(FLOOR)/.installed: pyproject.toml tests/floor/constraints.txt
	test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[sandbox,qiskit,plot,parquet]' \
	  hypothesis opentelemetry-sdk psutil pytest pytest-asyncio pytest-cov pytest-httpx pytest-timeout pytest-xdist pyyaml socksio \
	  --constraint tests/floor/constraints.txt
	@touch $@

floor: $(FLOOR)/.installed ## Run unit and flow tests with the oldest versions allowed: make floor TESTS=tests/unit
	$(FLOOR)/bin/python -m pytest -n $(WORKERS) --dist loadfile -W default $(TESTS)

$(INTEROP)/.installed: pyproject.toml constraints.txt tests/interop/constraints.txt
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[sandbox,qiskit]' \
	  'qiskit-ibm-runtime[noise-learning]' pproxy simplejson hypothesis pytest pytest-asyncio pytest-timeout \
	  --constraint constraints.txt --constraint tests/interop/constraints.txt
	@touch $@

interop-client: $(INTEROP)/.installed ## Run IBM's official client against the sandbox
	$(INTEROP)/bin/python -m pytest -W default tests/interop

interop: interop-client ## The same, then the client's own integration tests
	$(INTEROP)/bin/python -m tests.interop.ibm_tests --sources $(INTEROP)/ibm

$(DOCS)/.installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(DOCS)/wanted.txt
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(DOCS)/wanted.txt --constraint constraints.txt
	@touch $@

docs: $(DOCS)/.installed ## Build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(UI)/.installed: pyproject.toml constraints.txt
	test -x $(UI)/bin/python || $(PYTHON) -m venv $(UI)
	$(UI)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[sandbox,ui]' \
	  hypothesis pytest pytest-asyncio pytest-timeout --constraint constraints.txt
	@touch $@

# As root the browser is installed where it is missing; otherwise the tests say that it is, and are skipped.
ui-test: $(UI)/.installed ## Check Prefect's pages with a headless browser
	@command -v chromium >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null \
	  || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || true
	$(UI)/bin/python -m pytest tests/ui

pictures: ## Take the documentation's screenshots again
	QRUNTIME_PICTURES=docs/images $(MAKE) ui-test

notebooks: $(STAMP) ## Run the example notebooks and store their outputs
	$(BIN)/python tools/notebooks.py

postgres-test: $(STAMP) ## Run the system tests against a Prefect server on PostgreSQL
	$(BIN)/python tests/postgres/run.py

$(RAY)/.installed: pyproject.toml constraints.txt tests/ray/constraints.txt
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[sandbox]' prefect-ray \
	  hypothesis pytest pytest-asyncio pytest-timeout --constraint constraints.txt --constraint tests/ray/constraints.txt
	@touch $@

ray-test: $(RAY)/.installed ## Run mapped tasks on a local Ray cluster
	$(RAY)/bin/python -m pytest -W default tests/ray

prefect-faults: $(STAMP) ## Restart, kill and slow down a Prefect server in every phase of a flow
	QRUNTIME_PREFECT_FAULTS=real $(BIN)/python -m pytest tests/system/test_prefect_fault_table.py

plain-install: $(STAMP) ## Install the wheel as a new user would, deploy, run and read the counts
	$(BIN)/python -m tests.plain_install

$(BENCH)/.installed: constraints.txt benchmarks/constraints.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check \
	  qiskit-ibm-runtime prefect-qiskit httpx psutil matplotlib \
	  --constraint constraints.txt --constraint benchmarks/constraints.txt
	@touch $@

bench: $(STAMP) $(BENCH)/.installed ## Measure beside comparable packages and write docs/benchmarks.md (40 minutes; use the machine for nothing else)
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.render
	$(BENCH)/bin/python -m benchmarks.chart

bench-quick: $(STAMP) $(BENCH)/.installed ## Try the benchmarks with few repeats, into .bench/
	$(BIN)/python -m benchmarks.run --quick --out .bench/quick.jsonl
	$(BIN)/python -m benchmarks.render .bench/quick.jsonl --out .bench/benchmarks.md
	$(BENCH)/bin/python -m benchmarks.chart .bench/quick.jsonl --out .bench/images

clean: ## Remove built files
	rm -rf $(VENV) .venv-run $(INTEROP) $(DOCS) $(UI) $(BENCH) $(FLOOR) $(RAY) .bench .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site *.egg-info
