# `make demo` and `make test` work on a fresh clone: they make .venv if it is absent.
PYTHON ?= python3.11
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --dist=loadgroup
# XLA's CPU code from fewer, plainer kernels: half of the time to compile, which is most of what tests do.
QUICKLY := XLA_FLAGS="--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

.PHONY: demo test test-all lint types docs benchmark clean

.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[experiments,dev,docs]'
	touch $@

demo: .venv/installed
	$(BIN)/python -m experiments.train --dataset=digits --model=dm_small --eps=0.1 --out=runs/digits
	$(BIN)/python -m experiments.certify --run=runs/digits

test: .venv/installed
	$(QUICKLY) $(PYTEST) -m 'not optimized and not slow'
	$(PYTEST) -m 'optimized and not slow'

test-all: .venv/installed
	$(QUICKLY) $(PYTEST) -m 'not optimized'
	$(PYTEST) -m optimized

lint: .venv/installed
	$(BIN)/python -m ruff check .

types: .venv/installed
	$(BIN)/python -m mypy

docs: .venv/installed
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

benchmark: .venv/installed
	$(BIN)/python -m experiments.benchmark

clean:
	rm -rf .venv runs build dist *.egg-info
