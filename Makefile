# Every target does its own set-up; nothing is installed outside .venv, .venv-gpu, .venv-transformers4
# and .venv-v2.
# Set-up is repeated only when pyproject.toml or the constraints change: their hash names the stamp file.

PYTHON ?= python3
# Two test processes for two cores; each runs its kernels on one thread, so they do not fight over the cores.
# A file's tests stay in one process, which makes what they share once.
WORKERS ?= 2
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST := -m pytest -n $(WORKERS) --dist loadfile

SOURCES := compactor passes runtime benchmarks examples tests
hash = $(shell cat pyproject.toml $(1) | sha256sum | cut -c1-16)
MAIN := .venv/setup-$(call hash,constraints.txt)
DEMO := .venv/demo-$(call hash,constraints.txt)
PEERS := .venv/peers-$(call hash,constraints.txt)
GPU := .venv-gpu/setup-$(call hash,constraints.txt)
TRANSFORMERS4 := .venv-transformers4/setup-$(call hash,constraints-transformers4.txt)
V2 := .venv-v2/setup-$(shell sha256sum < constraints-v2.txt | cut -c1-16)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-transformers4 test-v2 lint types fix wheel bench bench-gpu clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(MAIN) ## install the project, its tests and its linters into .venv

demo: $(DEMO) ## export the bundled checkpoint; show what went, its accuracy and its latency
	.venv/bin/python examples/demo.py

test: $(MAIN) ## run the quick tests with transformers 5
	$(TEST_ENV) .venv/bin/python $(PYTEST) -m "not slow"

test-slow: $(MAIN) ## run the slow tests: the same ways with more settings
	$(TEST_ENV) .venv/bin/python $(PYTEST) -m slow

test-transformers4: $(TRANSFORMERS4) ## run the export, answer and consumer tests with transformers 4.57, optimum and sentence-transformers
	$(TEST_ENV) .venv-transformers4/bin/python $(PYTEST) tests/compactor tests/answers tests/consumers

test-v2: $(MAIN) $(V2) ## check a Triton repository by Triton's proto, and serve it with MLServer
	$(TEST_ENV) .venv/bin/python -m pytest tests/consumers_v2

lint: $(MAIN) ## check style and formatting
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/ruff format --check $(SOURCES)

fix: $(MAIN) ## format the code and mend what the linter can
	.venv/bin/ruff check --fix $(SOURCES)
	.venv/bin/ruff format $(SOURCES)

types: $(MAIN) build/types/compactor ## check types, strictly
	.venv/bin/mypy

wheel: $(MAIN) ## build the wheel into dist/
	rm -rf build/lib build/bdist.* dist
	.venv/bin/python -m build --wheel

bench: $(PEERS) ## measure published sizes on this CPU, and the other engines beside ours (an hour)
	.venv/bin/python benchmarks/peers.py
	.venv/bin/python benchmarks/paper.py

bench-gpu: $(GPU) ## fill the GPU columns, on a machine with an NVIDIA GPU
	.venv-gpu/bin/python benchmarks/paper.py --provider cuda --out benchmarks/results/paper-gpu.json

clean: ## remove the environments and everything built
	rm -rf .venv .venv-gpu .venv-transformers4 .venv-v2 build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-out

$(MAIN): | .venv/bin/python
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(DEMO)

# What a user installs, and no more: the first minute is for the first result.
$(DEMO): | .venv/bin/python
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[export]'
	touch $@

$(PEERS): $(MAIN)
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[peers]'
	touch $@

# The two distributions of ONNX Runtime fill the same folder: one leaves before the other comes.
$(GPU): | .venv-gpu/bin/python
	.venv-gpu/bin/python -m pip install --quiet -c constraints.txt -e '.[bench,export]'
	.venv-gpu/bin/python -m pip uninstall --quiet --yes onnxruntime
	.venv-gpu/bin/python -m pip install --quiet -c constraints.txt 'onnxruntime-gpu[cuda,cudnn]>=1.24'
	touch $@

$(TRANSFORMERS4): | .venv-transformers4/bin/python
	.venv-transformers4/bin/python -m pip install --quiet -c constraints-transformers4.txt -e '.[test,optimum]'
	touch $@

# Servers that know nothing of us: MLServer, and with it tritonclient, which holds Triton's model_config.proto.
$(V2): | .venv-v2/bin/python
	.venv-v2/bin/python -m pip install --quiet -c constraints-v2.txt mlserver onnxruntime
	touch $@

.venv/bin/python .venv-gpu/bin/python .venv-transformers4/bin/python .venv-v2/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "compactor needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(@D:/bin=)

# The package as the wheel lays it out, in links: compactor/ with passes/ and runtime/ inside.
# Made anew each time, because a module may have come or gone.
.PHONY: build/types/compactor
build/types/compactor:
	rm -rf build/types && mkdir -p $@
	ln -s $(CURDIR)/compactor/* $(CURDIR)/passes $(CURDIR)/runtime $@/
