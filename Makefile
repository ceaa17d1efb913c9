# The two commands a stranger needs: `make demo` and `make test`. Both work on a bare machine with Python >= 3.10.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2

.PHONY: demo test lint types clean

# One pip call, so that the registry's torch and torchvision match.
.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,test]'
	touch $@

demo: .venv/installed
	$(BIN)/sresnet demo

# One thread per test process: the processes share the cores.
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

clean:
	rm -rf .venv demo build dist *.egg-info
