# `make demo` and `make test` work on a fresh clone: they make .venv if it is absent.
# The first of these that runs; a name on the path may be a shim without an interpreter. pyenv's run what is selected.
export PYENV_VERSION ?= 3.13:3.12:3.11
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3,$(shell PYENV_VERSION=$(PYENV_VERSION) $p -c 'import sys; print(sys.executable)' 2>/dev/null)))
OLDEST_PYTHON ?= python3.11
BIN := .venv/bin
PYTEST := -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder
# Until jaxlib 0.12: plainer kernels, half of the time to compile, which is most of what tests do.
QUICKLY := XLA_FLAGS=--xla_cpu_use_fusion_emitters=false

# What the oldest versions are tested on: laws of bounds, which depend on what JAX traces; no training, no documents.
LAWS := $(patsubst %,tests/test_%.py,rows linear scans slopes forms windows rounding alpha exact layers random_programs lipschitz)

.PHONY: demo test test-all test-oldest lint types docs benchmark clean

.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[experiments,dev,docs]'
	touch $@

.venv-oldest/installed: setup.cfg pyproject.toml
	test -x .venv-oldest/bin/python || $(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --editable '.[dev]' 'jax == 0.10.2' 'jaxlib == 0.10.2'
	touch $@

demo: .venv/installed
	$(BIN)/ibpjax train --dataset=digits --model=dm_small --eps=0.1 --out=runs/digits
	$(BIN)/ibpjax certify --run=runs/digits

test: .venv/installed
	$(BIN)/python $(PYTEST) -m 'not slow'

test-all: .venv/installed
	$(BIN)/python $(PYTEST)

test-oldest: .venv-oldest/installed
	$(QUICKLY) .venv-oldest/bin/python $(PYTEST) -m 'not optimized and not slow' $(LAWS)
	.venv-oldest/bin/python $(PYTEST) -m 'optimized and not slow' $(LAWS)

lint: .venv/installed
	$(BIN)/python -m ruff check .

types: .venv/installed
	$(BIN)/python -m mypy

docs: .venv/installed
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

benchmark: .venv/installed
	$(BIN)/python -m experiments.benchmark

clean:
	rm -rf .venv .venv-oldest runs build dist *.egg-info
