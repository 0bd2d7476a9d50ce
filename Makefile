# A newcomer needs Python >= 3.11, gcc, make and git; everything else is installed into .venv (about 6 GB, most of it torch).
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: setup demo study test check bench battery clean

setup: $(INSTALLED)  ## the environment alone

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

test: setup  ## the tests, under 20 minutes on 2 cores
	$(BIN)/python -m pytest -m "not battery"

check: setup  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

battery: setup  ## the long tests: kill storms, fuzz, hostile input
	$(BIN)/python -m pytest -m battery tests/battery

clean:  ## everything that make created
	rm -rf .venv demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
