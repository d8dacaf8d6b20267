# make train: set up, then two peers learn HalfCheetah. make test: everything CI checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENV ?= HalfCheetah-v5
ARGS ?=

.PHONY: install train test lint format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

train: install
	$(BIN)/dpd train $(ENV) $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
