# Two commands: `make demo` and `make test`. Each sets itself up.
PYTHON ?= python3
VENV ?= .venv
VENV_TORCH ?= .venv-torch
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu
# glibc keeps the large buffers of each step, in huge pages, instead of mapping and clearing them
# anew: docs/PERFORMANCE.md. (Of several GLIBC_TUNABLES a child process would see the first alone.)
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 8589934592
export MALLOC_ARENA_MAX ?= 1

# Tests in so many processes; those of one file stay together, since they share what they set up,
# and files keep their order: the longest have few tests and would come last otherwise.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-slow test-long test-browser topologies export-check lint goldens clean

# CORPUS=DIR takes your own audio instead of synthetic speech, and needs nothing under a GPL.
ifdef CORPUS
demo: $(VENV)/.installed-export
	$(BIN)/python -m launch.demo --corpus "$(CORPUS)"
else
demo: $(VENV)/.installed-speech,export
	$(BIN)/python -m launch.demo
endif

# Everything but the slow and the long tests.
test: $(VENV)/.installed-test
	$(PYTEST)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow

test-all: $(VENV)/.installed-test
	$(PYTEST) -m "not long and not browser"

# Tortures and big compiles, minutes each; before a release.
test-long: $(VENV)/.installed-test
	$(PYTEST) -m long

# Pages in headless Chromium, which has to be there (Debian: apt install chromium).
test-browser: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m browser

# Every config on the topologies recommended for it, compiled without them: docs/TOPOLOGIES.md.
topologies: $(VENV)/.installed-tpu
	$(BIN)/python -m benchmarks.topologies

# Exports of random weights, loaded where there is no JAX, against JAX: docs/PYTORCH.md.
export-check: $(VENV)/.installed-export $(VENV_TORCH)/.installed
	$(BIN)/python -m benchmarks.export_check --python $(VENV_TORCH)/bin/python

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .

# Writes anew what tests compare with, where it is text: look at the difference.
goldens: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/test_golden.py tests/launch/test_recipes.py \
		tests/compile/test_programs.py -m "slow or long or not slow" --update-golden

$(VENV)/.installed-%: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable "$(if $(filter core,$*),.,.[$*])"
	touch $@

# What somebody has who uses exported directories: no JAX, and nothing of this project.
$(VENV_TORCH)/.installed: .ci/constraints.txt
	test -x $(VENV_TORCH)/bin/python || $(PYTHON) -m venv $(VENV_TORCH)
	$(VENV_TORCH)/bin/python -m pip install --quiet --upgrade pip
	$(VENV_TORCH)/bin/python -m pip install --quiet --constraint .ci/constraints.txt \
		torch transformers accelerate safetensors numpy
	touch $@

clean:
	rm -rf $(VENV) $(VENV_TORCH)
