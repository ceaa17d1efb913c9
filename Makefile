# The two commands a stranger needs: `make demo` and `make test`. Both work on a bare machine with Python >= 3.11.
# With TORCH=2.11, or 2.9.1, both use that torch, and an environment of its own.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv$(if $(TORCH),-$(TORCH))
BIN := $(VENV)/bin
# torchvision 0.(N + 15) goes with torch 2.N.
MINOR := $(word 2,$(subst ., ,$(TORCH)))
RELEASE := $(if $(TORCH),'torch==$(TORCH).*' 'torchvision==0.$(shell expr $(MINOR) + 15).*')

.PHONY: demo test docs fuzz lint types clean

# One pip call, so that the registry's torch and torchvision match.
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,test]' $(RELEASE)
	touch $@

demo: $(VENV)/installed
	$(BIN)/sresnet demo --force

# One thread per test process: the processes share the cores. Source is checked against one torch's types, the newest.
test: $(if $(TORCH),$(VENV)/installed,lint types)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# The site with the API reference: build/site/index.html. A warning is an error.
docs: $(VENV)/installed
	$(BIN)/python -m mkdocs build

# Thousands of mutated files for every reader: an hour or so, and again with the sanitizers in the C++ kernels.
fuzz: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --readers snn --sanitize

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-* demo build dist *.egg-info
