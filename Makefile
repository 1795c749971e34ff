PYTHON ?= python3
CONSTRAINTS ?= constraints/cpu.txt
EXTRAS ?= training
TEST_EXTRAS ?= training,deepspeed,lora,data,gguf,vae
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-for-tests

PROMPT ?= a picture of a blue circle and a red square
SEED ?= 0

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help env test-env demo test test-shapes lint format type contracts check clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: $(STAMP)  ## Create the environment in .venv, or reuse it

test-env: $(TEST_STAMP)  ## Add what the tests and checks need, on any machine without a GPU

# pip learns --group in 25.1, and Python 3.11 ships an older one.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12" >&2; exit 1; }
	@echo 'Installing into $(VENV): one to three minutes.'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[$(TEST_EXTRAS)]' --group dev
	@touch $@

demo: env  ## Draw the best of eight pictures and print where it is
	@mkdir -p demo
	$(BIN)/unimm generate "$(PROMPT)" --best-of 8 --seed $(SEED) \
		--out demo/picture.png --sheet demo/candidates.png

test: test-env  ## Run every test that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

test-shapes: test-env  ## Run the unit tests with every annotated shape checked
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q tests/unit \
		--jaxtyping-packages=metaquery,unimm,beartype.beartype

lint: test-env  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: test-env  ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: test-env  ## Check types
	$(BIN)/mypy

contracts: test-env  ## Check who imports whom
	$(BIN)/lint-imports

check: lint type contracts test  ## All of the above, as CI does

clean:  ## Delete the environment and the caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
