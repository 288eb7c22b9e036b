# The two commands of the README: `make demo` and `make test`. Both install into .venv first.
# `make test WORKERS=8` runs as many tests at a time; `make test-slow` runs the minutes of arithmetic that it leaves out,
# `make test-lowest` the suite with the oldest libraries that are allowed.
PYTHON ?= python3
WORKERS ?= 3
BIN := .venv/bin
# One thread a worker: the tests' tensors are too small to share. A worker more than two cores: one of them waits for Ray.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: install install-lowest test test-clusters test-slow test-lowest demo clean

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

# The suite with the lowest versions that pyproject.toml allows, in an environment of its own; not the checks of the code
# by ruff and mypy, whose newer versions find more.
test-lowest: install-lowest
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		-k "not ruff_is_content and not types_hold"

install-lowest: .venv-lowest/installed

.venv-lowest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	VIRTUAL_ENV=.venv-lowest .venv-lowest/bin/uv pip install --quiet --resolution lowest-direct --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/metaleak benchmark deploy/experiments/demo.yaml --out runs/demo

clean:
	rm -rf .venv .venv-lowest runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
