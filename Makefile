# The two commands of the README: `make demo` and `make test`. Both install into .venv first; `make help` lists the others.
# `make test WORKERS=8` runs as many tests at a time.
PYTHON ?= python3
WORKERS ?= 3
BIN := .venv/bin
# One thread a worker: the tests' tensors are too small to share. A worker more than two cores: one of them waits for Ray.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help install install-lowest test test-clusters test-slow test-lowest lint format typecheck docs demo clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## install into .venv

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	# setuptools warns of every editable installation with folders beside the package.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: install ## run the tests, about five minutes on two cores
	$(PYTEST)

test-clusters: install ## run the slow tests with clusters, killed processes and Flower's own tools
	$(PYTEST) -m slow tests/deploy

test-slow: install ## run the slow tests that make test leaves out
	$(PYTEST) -m slow

# In an environment of its own; the folders that rest on torch, Flower, Ray and pyarrow. The oldest scipy, dp-accounting and
# matplotlib are installed and not tested.
LOWEST := tests/clients tests/server tests/deploy/engines tests/deploy/simulate
test-lowest: install-lowest ## run the tests of clients, server and simulation with the oldest libraries that are allowed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(LOWEST)

install-lowest: .venv-lowest/installed

.venv-lowest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	VIRTUAL_ENV=.venv-lowest .venv-lowest/bin/uv pip install --quiet --resolution lowest-direct --editable '.[dev]'
	touch $@

lint: install ## check style and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

typecheck: install ## check all types
	$(PYTEST) tests/test_rooms.py -k types_hold

# Without --quiet, which would not count the warnings either.
docs: install ## build the documentation site into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: install ## simulate, attack and defend on digits and sentences, and write runs/demo/report.html
	@echo "Learners train a model together and send only gradients. From these the server"
	@echo "tells which images they hold, and rebuilds them: first without a defense, then"
	@echo "with each of two defenses. It takes one to three minutes."
	@$(BIN)/metaleak benchmark deploy/experiments/demo.yaml --out runs/demo

clean: ## remove what the commands above have made
	rm -rf .venv .venv-lowest runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
