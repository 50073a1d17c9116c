# make setup | demo | test | test-slow | test-gpu | check | bench        (PYTHON=python3.12 picks the interpreter)
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
STAMP = $(VENV)/.installed-$(notdir $(PYTHON))
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: setup demo test test-slow test-gpu check format bench clean

setup: $(STAMP)

# A virtual environment of another interpreter is made anew.
$(STAMP): pyproject.toml
	@rm -f $(VENV)/.installed-*
	@if [ -x $(PY) ] && [ "$$($(PY) -c 'import sys; print(sys.version_info[:2])')" = "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')" ]; then :; else rm -rf $(VENV); $(PYTHON) -m venv $(VENV); fi
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $(STAMP)

demo: setup
	$(PY) examples/demo.py

test: setup
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" --doctest-modules lm data_pipeline tests

test-slow: setup
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -m slow tests

# On a machine with an NVIDIA GPU and jax[cuda13]; needs no TensorFlow.
test-gpu: setup
	LM_TEST_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true $(PY) -m pytest tests/lm/test_gpu.py

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(PY) -m pytest tests/test_layers.py

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Minutes each; rows are added to OUT, tables are printed. Peers (torch, transformers, grain) take part where they are installed.
OUT ?= bench.jsonl
bench: setup
	$(PY) benchmarks/step_time.py --out=$(OUT)
	$(PY) benchmarks/freeze.py --out=$(OUT)
	$(PY) benchmarks/compile_time.py --out=$(OUT)
	$(PY) benchmarks/scaling.py --out=$(OUT)
	$(PY) benchmarks/input.py --out=$(OUT)

clean:
	rm -rf $(VENV) runs data_cache build *.egg-info .pytest_cache .ruff_cache
