# Two commands set everything up: `make demo` shows the main job, `make test` runs every check.
PYTHON ?= python3
VENV ?= .venv
CORE ?= .venv-core
OLDEST ?= .venv-oldest
OLDEST_PYTHON ?= python3.10
BIN := $(VENV)/bin
PIP_FLAGS ?= --quiet --disable-pip-version-check
WORKERS ?= auto
MINUTES ?= 2
# Empty: Python keeps what it has compiled. Otherwise each of the processes that tests start compiles the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check lint format types imports docs unit oldest oldest-train fuzz api clean
help:
	@echo "make demo    set up an environment, draw a sample product line, train, evaluate, write a report"
	@echo "make test    set up an environment, then lint, types, import contract, documents, all tests and the examples of docstrings"
	@echo "make check   lint, types, import contract and documents alone"
	@echo "make docs    pages and reference as HTML, build/docs"
	@echo "make unit    tests alone (ARGS='-k name' passes options to pytest, WORKERS=0 runs them in one process)"
	@echo "make fuzz    tests that draw seeds or examples alone, on draws that no run has made before, and those of every method in every form"
	@echo "             (MINUTES=30 each for model files, images and requests)"
	@echo "make oldest  tests of the core tier with the oldest versions that pyproject.toml allows (OLDEST_PYTHON names Python 3.10)"
	@echo "make oldest-train  the same for inspecting, training and evaluating with each method, and for the service; downloads some GB"
	@echo "make api     renew the snapshot of the public interface, tests/api_surface.json"
	@echo "make format  rewrite the code in the house format"
	@echo "make clean   remove environments, caches and runs"

# Stamps: an environment is built anew when the dependencies change.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[dev]'
	@touch $@ $(VENV)/.train

# The core tier alone, without torch: tests prove that a trained model inspects there.
$(CORE)/.core: pyproject.toml
	$(PYTHON) -m venv $(CORE)
	$(CORE)/bin/python -m pip install $(PIP_FLAGS) -e .
	@touch $@

# The same with the lowest versions that pyproject.toml names, as uv resolves them.
$(OLDEST)/.core: pyproject.toml
	$(OLDEST_PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install $(PIP_FLAGS) uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e .
	@touch $@

# Training draws on PyPI's torch, which brings CUDA: apart, so that nobody loads gigabytes for the core tier.
$(OLDEST)-train/.train: pyproject.toml
	$(OLDEST_PYTHON) -m venv --clear $(OLDEST)-train
	$(OLDEST)-train/bin/python -m pip install $(PIP_FLAGS) uv
	$(OLDEST)-train/bin/uv pip install --quiet --python $(OLDEST)-train/bin/python --resolution lowest-direct -e '.[train,serve,mqtt,plc,opcua,camera,int8]'
	$(OLDEST)-train/bin/uv pip install --quiet --python $(OLDEST)-train/bin/python pytest pytest-xdist filelock hypothesis \
		trustme standardwebhooks 'tritonclient[http]' mapie
	@touch $@

demo: $(VENV)/.train
	$(BIN)/flawsmith demo --out demo

test:
	$(MAKE) --no-print-directory -j 2 check $(CORE)/.core
	$(MAKE) --no-print-directory unit

check: lint types imports docs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs build/docs

unit: $(VENV)/.dev $(CORE)/.core
	FLAWSMITH_CORE_PYTHON=$(abspath $(CORE))/bin/python $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --no-loadscope-reorder $(ARGS)

oldest: $(VENV)/.dev $(OLDEST)/.core
	FLAWSMITH_CORE_PYTHON=$(abspath $(OLDEST))/bin/python $(BIN)/python -m pytest -n 0 tests/test_project.py -k core $(ARGS)

oldest-train: $(OLDEST)-train/.train
	$(OLDEST)-train/bin/python -m pytest -n 0 tests/contract tests/runtime tests/pipeline/test_evaluate.py \
		tests/line tests/serving $(ARGS)

fuzz: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 -m draws --hypothesis-profile explore $(ARGS)
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 -m exhaustive $(ARGS)
	$(BIN)/python tests/field/fuzz_bundles.py --minutes $(MINUTES)
	$(BIN)/python -m tests.field.image_fuzzer --minutes $(MINUTES)
	$(BIN)/python -m tests.serving.hostile_requests --minutes $(MINUTES)

api: $(VENV)/.dev
	$(BIN)/python tests/test_api.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(CORE) $(OLDEST) $(OLDEST)-train build dist demo runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
