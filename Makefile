# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
#
# One virtual environment, .venv, is made when a target needs it and brought up to date when
# pyproject.toml or setup.py change. Variables: PYTHON, the interpreter that makes .venv
# (3.11 or newer); CONFIG, the run that `make train` starts.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: train test soak check clean help

CONFIG ?= examples/configs/k2-tiny.yaml
# The tiny model has two pipeline stages; one GPU holds both.
ifeq ($(CONFIG):$(shell nvidia-smi --list-gpus 2>/dev/null | grep -c GPU),examples/configs/k2-tiny.yaml:1)
ONE_GPU := --set parallel.pipeline_model_parallel_size=1
endif
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
# A room that appears or goes must be mapped again by the editable installation.
ROOMS := $(wildcard kernels/__init__.py recompute/__init__.py offload/__init__.py parallel/__init__.py)
# Twice quiet: errors only.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

train: $(STAMP) ## train the tiny Kimi K2 on this machine
	$(BIN)/k2-megatron data prepare --python-stdlib --tokenizer byte \
	    --output datasets/python-stdlib --if-missing
	$(BIN)/k2-megatron train $(CONFIG) $(ONE_GPU)

test: $(STAMP) ## run every test that needs no GPU
	$(BIN)/python -m pytest -q -m "not gpu and not multi_gpu"

soak: $(STAMP) ## kill -9 and resume 32 times, go from 40 layouts to others
	K2_MEGATRON_SOAK_KILLS=32 K2_MEGATRON_SOAK_PAIRS=40 $(BIN)/python -m pytest -q -s \
	    tests/distributed/test_kills.py tests/distributed/test_any_layout.py

# mypy finds a module by its folder, and our rooms are named differently once installed:
# it reads a built tree, and its messages get the names of the source back.
check: $(STAMP) ## check style, types and the rules of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/mypy
	$(BIN)/python setup.py --quiet build_py --build-lib build/mypy
	set -o pipefail; cd build/mypy && ../../$(BIN)/mypy --strict \
	    --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache --package k2_megatron \
	    | sed -E 's#^k2_megatron/(kernels|recompute|offload|parallel)/#\1/#'
	$(BIN)/python -m pytest -q tests/test_house.py

clean: ## remove .venv, builds and caches; runs/ and datasets/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' Makefile

$(STAMP): pyproject.toml setup.py $(ROOMS)
	@set -euo pipefail; \
	new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ ! -x $(BIN)/python ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    python=; \
	    for candidate in $(or $(PYTHON),python3.11 python3); do \
	        if "$$candidate" -c "$$new_enough" 2>/dev/null; then python=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "No Python 3.11 or newer found as: $(or $(PYTHON),python3.11 python3)." \
	            "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    fi; \
	    if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        echo "$$python cannot make virtual environments: its modules venv and ensurepip are" \
	            "missing. On Debian or Ubuntu: apt-get install python3-venv" \
	            "(or python3.11-venv)." >&2; \
	        exit 1; \
	    fi; \
	    echo "Making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear $(VENV); \
	fi; \
	if nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; then \
	    echo "Installing into $(VENV), with CUDA and Transformer Engine"; \
	    $(PIP) install torch 'setuptools>=77' wheel pybind11 ninja; \
	    $(PIP) install --no-build-isolation --editable '.[dev,gpu]'; \
	else \
	    echo "Installing into $(VENV), for the CPU"; \
	    $(PIP) install $(TORCH) 'setuptools>=77' wheel; \
	    $(PIP) install --no-build-isolation --editable '.[dev]'; \
	fi; \
	touch $@
