# `make demo` and `make test` install into .venv on first use only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-fast lint install clean

demo: install
	$(BIN)/fedsim run experiments/quickstart.yaml --force

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

test-fast: install
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=10 -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fedsim strategies clients

install: $(STAMP)

# torch is pinned and installed first: given only a range, pip would fetch the newest build.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedsim needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0 setuptools
	$(PIP) --no-build-isolation --editable '.[dev,data,flower,hub,tensorboard,mlflow,wandb,notebooks,vit,onnx]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
