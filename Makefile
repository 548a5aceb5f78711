# make demo | test | test-slow | test-long | test-examples | notebooks | lint | docs | clean: each sets up what it needs in .venv, the first time only.
PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && python3.11 -c '' >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.installed-docs

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow test-long test-examples notebooks lint docs clean help

help:
	@sed -n '1s/^# //p' Makefile

demo: $(STAMP)
	$(BIN)/tfllmrec demo

test: $(STAMP)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m 'not slow' --ignore tests/examples --ignore tests/notebooks

# Whole programs, killed processes, whole fits: minutes. Three at a time, because they often wait for another process.
test-slow: $(STAMP)
	$(BIN)/pytest -n 3 --dist loadfile -m 'slow and not long' --ignore tests/examples --ignore tests/notebooks

# Tests that .ci/run skips: further kills, searches and exports, fresh processes, ScaNN, foreign clients, long pages.
test-long: $(STAMP)
	$(BIN)/pytest -n 2 --dist load -m long --ignore tests/examples --ignore tests/notebooks

# Each script in examples/ on small planted data.
test-examples: $(STAMP)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist load tests/examples

# Each notebook, on MovieLens 100K.
notebooks: $(STAMP)
	$(BIN)/pytest -n 3 --dist load tests/notebooks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/: a wrong link, heading or docstring ends it. It does not load TensorFlow.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) site build dist *.egg-info client/build client/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# Again whenever the requirements change.
$(STAMP): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: $(PYTHON) is no Python 3.11 to 3.13; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into $(VENV) (once; TensorFlow alone is 600 MB)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@quiet=; test -t 1 || quiet=-qq; $(BIN)/python -m pip install $$quiet -e '.[test]'
	@touch $@

$(DOCS): $(STAMP)
	@quiet=; test -t 1 || quiet=-qq; $(BIN)/python -m pip install $$quiet -e '.[docs]'
	@touch $@
