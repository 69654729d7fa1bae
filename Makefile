# Two commands do everything: `make demo` and `make test`. Both set up .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SAMPLE := src/finesmith/samples/support_tickets.csv

.PHONY: help demo test lint types format docs clean

help:
	@echo "make demo    set up, tune on the bundled sample, print where the report is"
	@echo "make test    set up, lint, check types, run the tests"
	@echo "make format  format the code;  make docs  regenerate docs/recipe.md"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	@touch $@

demo: $(READY)
	$(BIN)/finesmith tune $(SAMPLE) --set data.group=customer_id

test: $(READY) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix src tests bench
	$(BIN)/ruff format src tests bench

docs: $(READY)
	$(BIN)/python -m finesmith.recipe.document > docs/recipe.md

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
