# `make demo` and `make test` install everything they need into .venv; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
OUTPUT ?= output
SEED ?= 1
CASES ?= 500
SAMPLE ?= 60
# Test processes: one more than there are processors, but at most four, because tests wait for their child processes.
PROCESSES ?= $(shell $(PYTHON) -c "import os; print(min(4, 1 + os.cpu_count()))")

.PHONY: demo test lint fuzz mutation docs benchmark train clean

demo: $(VENV)/.demo
	$(BIN)/python docs/demo.py --output $(OUTPUT)

# Bytecode is always cached, whatever the environment says, because the tests start Python many times.
test: $(VENV)/.test
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive LiverXAILib
	$(BIN)/python .ci/audit.py

fuzz: $(VENV)/.test
	cd Testing && ../$(BIN)/python -m fuzz all --seed $(SEED) --cases $(CASES)

mutation: $(VENV)/.dev
	$(BIN)/python Testing/mutation.py --seed $(SEED) --sample $(SAMPLE)

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --jobs auto --fail-on-warning --keep-going --quiet docs $(OUTPUT)/docs
	@echo "The site is in $(OUTPUT)/docs/index.html"

benchmark: $(VENV)/.test
	mkdir -p $(OUTPUT)
	$(BIN)/liverxai phantom --output $(OUTPUT)/phantom.nii.gz --seed 7
	$(BIN)/liverxai benchmark wait $(OUTPUT)/phantom.nii.gz
	$(BIN)/liverxai benchmark cost $(OUTPUT)/phantom.nii.gz
	$(BIN)/liverxai benchmark speed --output $(OUTPUT)

train: $(VENV)/.test
	$(BIN)/liverxai train configs/phantom.yaml

clean:
	rm -rf $(VENV) $(OUTPUT) build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable ".[evaluate]"
	@touch $@

$(VENV)/.test: $(VENV)/.demo Testing/requirements-nnunet.txt
	$(PIP) --editable ".[test]"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --requirement Testing/requirements-nnunet.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) --editable ".[dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.test
	$(PIP) --editable ".[docs]"
	@touch $@
