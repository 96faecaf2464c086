# Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One process a core, one thread each (tests/conftest.py). WORKERS=0 runs the tests in this process.
WORKERS ?= logical
PYTEST := $(BIN)/pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

# The mathematics, settings, engine and tiny PPO runs, in a minute at most. CONTRIBUTING.md says what else there is.
FAST := tests/rl tests/config tests/test_layout.py tests/test_types.py tests/test_docs_example.py \
	$(addprefix tests/checklist/test_,advantages.py kl.py golden.py policy_loss.py policy_loss_corrections.py \
		policy_loss_variants.py policy_loss_weights.py potentials.py reward_shaping.py whitening_and_values.py) \
	$(addprefix tests/engine/test_,native.py philox.py sampling.py) \
	"tests/engine/test_generate.py::test_logprobs_are_the_teacher_forced_ones[llama]" \
	"tests/train/ppo/test_ppo.py::test_first_minibatch_has_ratio_exactly_1"

.PHONY: demo test fast test-vllm lint format mutation clean

demo: $(READY)
	$(BIN)/proxlm demo

test: $(READY)
	$(PYTEST)

fast: $(READY)
	$(PYTEST) $(FAST)

# The engine on vLLM itself, on the CPU. Its environment needs Python 3.11, torch's CPU build in the package index and 2.5 GB.
VLLM_PYTHON ?= python3.11
VLLM := .venv-vllm
test-vllm: $(READY) $(VLLM)/.ready
	PROXLM_TEST_VLLM=$(VLLM)/bin/python $(BIN)/pytest tests/engine/test_real_vllm.py

$(VLLM)/.ready: constraints-vllm.txt
	$(VLLM_PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-vllm.txt
	touch $(VLLM)/.ready

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
	rm -rf $(VENV) $(VLLM) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
