# The two commands of the README: `make demo` and `make test`. Both install into .venv first.
# `make test WORKERS=8` runs as many tests at a time; `make test-slow` runs the minutes of arithmetic that it leaves out.
PYTHON ?= python3
WORKERS ?= 3
BIN := .venv/bin
# One thread a worker: the tests' tensors are too small to share. A worker more than two cores: one of them waits for Ray.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: install test test-clusters test-slow demo clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: install
	$(PYTEST)

# Of the slow tests those that start clusters, kill processes and use Flower's own tools.
test-clusters: install
	$(PYTEST) -m slow tests/deploy

test-slow: install
	$(PYTEST) -m slow

demo: install
	$(BIN)/metaleak benchmark deploy/experiments/demo.yaml --out runs/demo

clean:
	rm -rf .venv runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
