# Two commands do everything: `make demo` and `make test`. Every target makes .venv first where needed.
PYTHON ?= python3
BIN := .venv/bin
# In their order: otherwise files with few tests come last, and one of those takes longest.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
READY := .venv/ready

.PHONY: setup demo test test-all lint bench clean

setup: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/cutroom demo

test: $(READY)
	$(PYTEST) -m "$(if $(CI),slow or not slow,not slow)"

test-all: $(READY)
	$(PYTEST) -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.ranges
	$(BIN)/python -m benchmarks.long_film
	$(BIN)/python -m benchmarks.shots
	$(BIN)/python -m benchmarks.filters
	$(BIN)/python -m benchmarks.duplicates
	$(BIN)/python -m benchmarks.vae_learns bench-vae

clean:
	rm -rf .venv build dist *.egg-info cutroom-demo cutroom-out bench-vae
