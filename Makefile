# Set-up, tests and the quickstart. `make` alone lists the targets.
#
# Variables that may be given on the command line:
#   PYTHON           the interpreter for the virtual environment (default: the first of 3.11 …)
#   TORCH_PIP_ARGS   options for pip when it installs torch, e.g. where a CPU build comes from
#   PYTEST_ARGS      options for pytest, e.g. -x
#   COMMIT           whose share of the nightly tests `make test-share` runs (default: HEAD)
#   QUICKSTART_ARGS  options for the quickstart
#   ANY_ARGS         options for the any-to-any quickstart
#   ALIGN_ARGS       options for the quickstart of RLHF
#   REAL_ARGS        options for benchmarks/real_speech.py

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
COMPILED := $(VENV)/.compiled

PYTHON ?=
TORCH_PIP_ARGS ?=
PYTEST_ARGS ?=
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || date +%j)
QUICKSTART_ARGS ?=
ANY_ARGS ?=
ALIGN_ARGS ?=
REAL_ARGS ?=

# ninja, ray and deepspeed are called by name, also by what we start.
export PATH := $(BIN):$(PATH)

GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
ifeq ($(GPUS),0)
# Left to itself, DeepSpeed guesses; a CUDA build of torch without a GPU would mislead it.
export DS_ACCELERATOR ?= cpu
endif

# Several processes test at once: threads of their own would only wait for each other's.
test-fast test-cluster test-share: export OMP_NUM_THREADS := 1

# See tests/cluster/conftest.py.
CLUSTER := tests/cluster tests/etl/runtime/test_executor.py
SEVERAL := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: help setup page lmms-eval quickstart quickstart-any quickstart-align real
.PHONY: test test-all test-fast test-cluster test-share check lock clean
.NOTPARALLEL: # tests share the cores as they are told to

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) $(COMPILED) ## set up .venv; the other targets do it by themselves

page: .venv-page/.installed ## set up .venv-page, with Gradio, for the page of `pipeline serve`

lmms-eval: .venv-lmms-eval/.installed ## set up .venv-lmms-eval, which asks benchmarks of a served run

quickstart: setup ## run the whole system on the digits world, into runs/quickstart
	$(BIN)/python -m pipeline.quickstart --output runs/quickstart $(QUICKSTART_ARGS)

quickstart-any: setup ## the same for a model that also generates pictures, sounds and videos, into runs/quickstart-any
	$(BIN)/python -m pipeline.quickstart.any_to_any --output runs/quickstart-any $(ANY_ARGS)

quickstart-align: setup ## SFT on easy questions, then DRESS, DPO and GRPO on harder ones, into runs/quickstart-align
	$(BIN)/python -m pipeline.quickstart.align --output runs/quickstart-align $(ALIGN_ARGS)

real: setup ## teach a real language model to hear, into runs/real_speech; needs espeak-ng
	$(BIN)/python benchmarks/real_speech.py $(REAL_ARGS)

test: setup ## formatting, lint and types, then the fast tests, then those on a real cluster
	$(MAKE) --no-print-directory check test-fast test-cluster

# The page's tests are skipped without its environment, and without Chromium. It takes over an hour,
# so all of it runs where a test is red.
test-all: setup page ## the same, and the nightly tests
	$(MAKE) --no-print-directory --keep-going check test-fast test-cluster \
	    PYTEST_ARGS="--nightly -rs $(PYTEST_ARGS)"

test-fast: setup ## the tests without a cluster
	$(BIN)/python -m pytest -m "not cluster" -n auto --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

test-cluster: setup ## the tests on a real cluster
	$(BIN)/python -m pytest -m cluster $(SEVERAL) $(PYTEST_ARGS) $(CLUSTER)

test-share: setup page ## a share of the nightly tests, a quarter of an hour at most; another for each commit
	$(BIN)/python -m pytest --nightly-share $(COMMIT) $(SEVERAL) $(PYTEST_ARGS)

check: $(INSTALLED) ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Apart: Gradio wants pillow < 13.
.venv-page/.installed: requirements-page.txt | $(INSTALLED)
	$(or $(PYTHON),$(BIN)/python) -m venv .venv-page
	.venv-page/bin/python -m pip --disable-pip-version-check install --quiet -r requirements-page.txt
	@touch $@

# Apart: lmms-eval wants av < 16. Without its dependencies, of which its client of an endpoint needs
# only those that the file lists: others (torchvision, decord, sentence-transformers) are of models.
.venv-lmms-eval/.installed: requirements-lmms-eval.txt | $(INSTALLED)
	$(or $(PYTHON),$(BIN)/python) -m venv .venv-lmms-eval
	.venv-lmms-eval/bin/python -m pip --disable-pip-version-check install --quiet $(TORCH_PIP_ARGS) \
	    "$$(grep '^torch==' $<)"
	.venv-lmms-eval/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r $<
	@touch $@

# Once per lock file and project metadata. An environment that works is kept and brought up to date.
$(INSTALLED): requirements.lock pyproject.toml
	@supported='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "$$supported; import pip" 2>/dev/null; then \
	    for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
	        $$python -c "$$supported" 2>/dev/null && break || python=; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo 'error: no Python >= 3.11 with its venv module found:' \
	            'install one, or name it: make PYTHON=/path/to/python3.11' >&2; \
	        exit 2; \
	    fi; \
	    echo "making $(VENV) with $$($$python --version)"; \
	    $$python -m venv --clear $(VENV); \
	fi
	@echo 'installing the locked dependencies (a few minutes the first time)'
	$(PIP) install --quiet $(TORCH_PIP_ARGS) "$$(grep '^torch==' requirements.lock)"
	$(PIP) install --quiet -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# DeepSpeed compiles its CPU collectives on first use: better here than within somebody's first run.
$(COMPILED): $(INSTALLED)
ifeq ($(GPUS),0)
	@echo "compiling DeepSpeed's CPU collectives (one or two minutes the first time)"
	@$(BIN)/python -c 'from pipeline.compat.deepspeed import load_op; load_op("ShareMemCommBuilder")' \
	    > $(VENV)/compile.log 2>&1 || { \
	    echo 'error: DeepSpeed could not compile its CPU collectives' \
	        '(is g++ installed? details in $(VENV)/compile.log)' >&2; \
	    exit 2; \
	}
endif
	@touch $@

lock: ## write requirements.lock from what is installed now
	@{ sed '/^[^#]/,$$d' requirements.lock; \
	$(PIP) freeze --all --exclude-editable --exclude pip --exclude wheel \
	    | sed -E 's/^(torch==[0-9.]+)[+].*/\1/; s/ @ .*//' \
	    | grep -viE '^(nvidia-|cuda-|triton|mmloom|#)'; } > $(VENV)/lock
	@mv $(VENV)/lock requirements.lock

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache mmloom.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
