# Two commands: `make demo` and `make test`. Each sets itself up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu
# glibc keeps the large buffers of each step instead of mapping and clearing them anew, in huge pages:
# docs/PERFORMANCE.md.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592:glibc.malloc.arena_max=1

.PHONY: demo test test-all test-slow lint clean

demo: $(VENV)/.installed-speech
	$(BIN)/python -m launch.demo

# Everything but the slow tests.
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
