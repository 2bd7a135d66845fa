# Everything lives in .venv; a fresh machine needs CPython 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# cpu or gpu; later calls keep what the first one installed
DEVICE ?= $(or $(shell cat .venv/.device 2>/dev/null),cpu)
OTHER_FBGEMM := $(if $(filter gpu,$(DEVICE)),fbgemm-gpu-cpu,fbgemm-gpu)
BIN := .venv/bin
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

.PHONY: setup demo test check format clean

setup: .venv/.ready-$(DEVICE)

# torch first, so that nothing that needs it brings a build of its own; then FBGEMM and TorchRec without their
# dependencies (TorchRec asks for FBGEMM's CUDA build by name), which requirements/pinned.txt holds.
.venv/.ready-$(DEVICE): pyproject.toml requirements/pinned.txt requirements/torch.txt requirements/torchrec-$(DEVICE).txt requirements/tritonclient.txt
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), f"ctrkit is pinned for CPython 3.11, this is {sys.version}"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements/torch.txt
	$(BIN)/python -m pip uninstall --quiet --yes $(OTHER_FBGEMM)
	rm -f .venv/.ready-*
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/torchrec-$(DEVICE).txt
	$(BIN)/python -m pip install --quiet -r requirements/pinned.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/tritonclient.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	echo $(DEVICE) > .venv/.device
	touch .venv/.ready-$(DEVICE)

demo: setup
	$(BIN)/ctrkit demo

test: setup
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=90

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs
