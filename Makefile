# Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One process a core, one thread each (tests/conftest.py). WORKERS=0 runs the tests in this process.
WORKERS ?= logical
PYTEST := $(BIN)/pytest -n $(WORKERS) --maxprocesses 16 --dist worksteal

# The mathematics, settings, engine and a tiny PPO run; a minute at most. What else there is: CONTRIBUTING.md.
FAST := tests/rl tests/config tests/test_layout.py tests/test_types.py

.PHONY: demo test fast lint format mutation clean

demo: $(READY)
	$(BIN)/proxlm demo

test: $(READY)
	$(PYTEST)

fast: $(READY)
	$(PYTEST) -m "not slow" $(FAST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Changes operators and constants of the mathematics one at a time and counts which changes the tests detect; 10 minutes.
mutation: $(READY)
	$(BIN)/python benchmarks/mutation.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
