# make run: set everything up and relay mail on embedded defaults. make test: set everything up and prove it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet
TESTS ?= tests
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) + 1)# many tests wait for processes

.PHONY: help setup run test coverage corpora interop fuzz model chaos bench bench-plot lint format openapi wheel lock clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "MPU needs Python 3.11 or newer; name one with PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "This python3 can't make environments (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }

$(VENV)/.runtime: requirements.lock requirements-build.lock pyproject.toml | $(BIN)/python
	@echo "Installing what MPU needs into $(VENV)"
	@$(PIP) install --no-deps --require-hashes -r requirements.lock -r requirements-build.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.tools: requirements-dev.lock $(VENV)/.runtime
	@echo "Installing the tools for tests and checks into $(VENV)"
	@$(PIP) install --no-deps --no-build-isolation --require-hashes -r requirements-dev.lock
	@touch $@

setup: $(VENV)/.tools ## the environment with all tools; after it there is .venv/bin/mpu

run: $(VENV)/.runtime ## the relay on 127.0.0.1:8025 with a sandbox account, data in ./var
	@exec $(BIN)/mpu serve --demo

lint: $(VENV)/.tools ## ruff, mypy, import directions, dependencies, bandit, migrations, openapi.yaml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive api core migrations
	$(BIN)/mpu migrate --check
	$(BIN)/mpu openapi --check

test: lint ## everything that must hold: lint, then all tests
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(TESTS)

coverage: $(VENV)/.tools ## which branches the shorter tests take; COVERAGE=all TESTS=tests measures all of them, which takes long
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal --cov --cov-branch --cov-report=term:skip-covered \
		$(if $(filter-out tests,$(TESTS))$(filter all,$(COVERAGE)),$(TESTS),-m 'not timed' tests/unit tests/integration tests/api)

model: $(VENV)/.tools ## the relay against the model for a long time: EXAMPLES=500 STEPS=40
	MODEL_EXAMPLES=$(or $(EXAMPLES),500) MODEL_STEPS=$(or $(STEPS),40) $(BIN)/pytest -q tests/acceptance/test_model.py

corpora: $(VENV)/.tools ## mails of other projects through the relay; fetches them into var/corpora
	$(BIN)/pytest -q tests/corpora/all.py tests/corpora/test_*.py

interop: $(VENV)/.tools ## real Postfix, Exim, OpenSMTPD, aiosmtpd, smtp-server, Haraka; writes docs/interop.md; as root
	$(BIN)/python -m tests.interop --write

fuzz: $(VENV)/.tools ## look for octets that break the parsers: MINUTES=1 a target, TARGETS="message reply"
	@$(PIP) install --require-hashes --no-deps --target var/fuzz/site --upgrade -r requirements-fuzz.lock
	@for target in $(or $(TARGETS),message address address_list reply body recode); do echo "$$target"; \
		PYTHONPATH=var/fuzz/site:. $(BIN)/python -m tests.fuzz $$target var/fuzz \
			-max_total_time=$$(( $(or $(MINUTES),1) * 60 )) || exit 1; done

chaos: $(VENV)/.tools ## every promise with the figures of its table: kills, power cuts, full disks (15 to 30 minutes)
	$(BIN)/python -m tests.chaos $(CHAOS)

bench: $(VENV)/.tools var/bench/.site ## figures beside Postfix, Exim and others (these as root): ONLY="large tls" ROUNDS=5
	$(BIN)/python -m benchmarks --rounds $(or $(ROUNDS),5) $(if $(ONLY),--only $(ONLY))

bench-plot: $(VENV)/.tools var/bench/.site ## draw docs/performance.svg and .png from benchmarks/results
	PYTHONPATH=var/bench/site:. $(BIN)/python -m benchmarks.plot

var/bench/.site: requirements-bench.lock | $(VENV)/.tools
	@$(PIP) install --require-hashes --no-deps --target var/bench/site --upgrade -r requirements-bench.lock
	@touch $@

format: $(VENV)/.tools ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: $(VENV)/.tools ## write openapi.yaml anew
	$(BIN)/mpu openapi --output openapi.yaml

wheel: $(VENV)/.runtime ## what deploy/mpu.service installs: dist/mail_processing_unit-*.whl
	@rm -f dist/mail_processing_unit-*.whl
	@$(PIP) wheel --no-index --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/mail_processing_unit-*.whl

lock: $(VENV)/.tools ## resolve all dependencies anew; UPGRADE=--upgrade takes newer ones
	$(LOCK) $(UPGRADE) pyproject.toml -o requirements.lock
	$(LOCK) $(UPGRADE) --group pyproject.toml:build -c requirements.lock -o requirements-build.lock
	$(LOCK) $(UPGRADE) pyproject.toml --extra dev --group build -c requirements.lock -c requirements-build.lock -o requirements-dev.lock

clean: ## remove what can be made again; never ./var
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* coverage.xml htmlcov dist build
	find . -name __pycache__ -type d -not -path './var/*' -prune -exec rm -rf {} +
