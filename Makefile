# Two commands: `make demo` and `make test`. Each sets itself up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-all test-slow lint clean

demo: $(VENV)/.installed-speech
	$(BIN)/python -m launch.demo

# What does not need the GPL-3 extra and real pods of its own: everything but the slow tests.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .

$(VENV)/.installed-%: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) runs
