# Everything a newcomer runs. `make demo` and `make test` set up what they need.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: help setup demo test test-slow lint sanitize zoo bench clean

help:
	@echo "make demo | test | test-slow | lint | sanitize | zoo | bench | clean"

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,transformers]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchvision timm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt huggingface-hub pyyaml
	touch $@

setup: $(VENV)/ready

demo: $(VENV)/ready
	$(BIN)/secateur demo --output $(RUN)

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow"

test-slow: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sanitize: $(VENV)/ready
	VENV=$(VENV) .ci/sanitize

zoo: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python bench/zoo.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/zoo.py --deploy

bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch-pruning
	$(BIN)/python bench/trace.py

clean:
	rm -rf $(VENV) runs dist build
