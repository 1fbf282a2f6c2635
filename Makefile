# `make crawl` and `make test` do all the set-up by themselves: they need python3 (3.11 to 3.13) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench

# The site to crawl: make crawl URL=https://docs.example.com/ ARGS="--max-pages 50". Without it, the site that the
# project ships is served on loopback and crawled.
URL ?=
ARGS ?=
ROUNDS ?= 100

# Containers often set it, to keep their images small: then each of the hundreds of processes that the tests start
# compiles the program anew, which is a fifth of what its start costs.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help crawl up test soak check format bench clean

help:  ## What there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

crawl: $(READY)  ## Crawl a website into Postgres (URL=…, else the demo site)
ifeq ($(strip $(URL)),)
	@$(BIN)/omniops demo $(ARGS)
else
	@$(BIN)/omniops crawl $(ARGS) -- $(URL)
endif

up: $(READY)  ## Start the Dagster UI
	@$(BIN)/omniops up $(ARGS)

# A process for each core; they have to agree on the names of tests, some of which come from sets. In the order of their
# names: the few long tests of `acceptance` come first, and not when one core has nothing else left.
test: $(READY)  ## Run the tests
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(READY)  ## Kill senders, workers, servers and the daemon for long (ROUNDS=100)
	OMNIOPS_SOAK_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/integration/queue/test_kills.py \
		tests/integration/queue/test_model.py tests/acceptance/test_daemon.py \
		tests/acceptance/test_kills.py --timeout 0 $(ARGS)

check: $(READY)  ## Format, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH_READY)  ## Measure against peers (about ten minutes)
	$(BIN)/python -m bench.crawl $(ARGS)

clean:  ## Remove the environment, the caches and the embedded servers' data
	-@test ! -x $(BIN)/omniops || $(BIN)/omniops services stop --force
	rm -rf $(VENV) .omniops build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(0 if ok else f"omniops needs Python 3.11 to 3.13, and {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.12 …")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; a minute or two) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,browser]"
	@touch $@

$(BENCH_READY): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@touch $@
