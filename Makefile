# Two commands matter: `make sweep` and `make test`.  Both make .venv with the pinned dependencies first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test check dashboard bench clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dashboard,dev]"
	touch $@

sweep: .venv/installed
	$(BIN)/python tune/sweep.py $(ARGS)

test: .venv/installed check
	$(BIN)/python -m pytest $(ARGS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

dashboard: .venv/installed
	$(BIN)/streamlit run dashboard $(ARGS)

bench: .venv/installed
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf .venv results build dist
