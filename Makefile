# Each target does the whole set-up on a fresh machine with Python 3.11+, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

# A process per core; a file's tests stay together, so that what a module builds is built once.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check format clean

demo: $(VENV)/.installed          ## run the tiny recipe, then talk to it
	$(BIN)/warmline demo

test: $(VENV)/.installed-dev      ## the fast set
	$(BIN)/pytest $(PARALLEL) -m "not slow"

test-all: $(VENV)/.installed-dev  ## with the long runs
	$(BIN)/pytest $(PARALLEL)

check: $(VENV)/.installed-dev     ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) test

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@
