# `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint clean

demo: .venv
	$(BIN)/python -m recipes.quickstart

# A file to a worker at a time, as tests of a file share what they compile.
test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

slow: .venv
	$(BIN)/python -m pytest -m slow

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv: .venv/.installed

# Made anew whenever the dependencies change. pip of 25.1 and newer reads dependency groups.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[recipes]" --group tests --group lint
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist out
