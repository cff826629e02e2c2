# `make demo` and `make test` are the two commands anyone needs; both run `make setup` first.
# PYTHON=python3.12 chooses another interpreter; the environment is .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
LIBRARY := exporter/ctx_export/lib/libctx_plugins.so
INSTALLED := $(VENV)/.installed
CPP_SOURCES := $(shell find plugins tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PLUGIN_SOURCES := $(shell find plugins CMakeLists.txt cmake -type f 2>/dev/null)
# The oldest CUDA compiler that knows every architecture of the library.
CUDA_MAJOR := 13

.PHONY: setup demo test check format bench clean
.DELETE_ON_ERROR:

setup: $(INSTALLED) $(LIBRARY)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or older than 3.11: install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot create virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned dependencies into $(VENV) (several minutes the first time)"
	$(PIP) install -c constraints.txt -C wheel.cmake=false -e '.[export,eval,sweep,rtx,dev]'
	# For one file, Triton's model_config message: its other requirements contradict the rest.
	$(PIP) install -c constraints.txt --no-deps tritonclient
	@touch $@

$(LIBRARY): $(PLUGIN_SOURCES) | $(INSTALLED)
	@BIN=$(BIN) PIP="$(PIP)" CUDA_MAJOR=$(CUDA_MAJOR) LIBRARY=$@ sh tools/build_plugins.sh

demo: setup
	$(BIN)/python -m tools.demo.run

test: setup
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@echo "$(BIN)/clang-format --dry-run -Werror" of plugins and tests/cpp
	@$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	@$(BIN)/clang-format -i $(CPP_SOURCES)

bench: setup
	$(BIN)/python -m tools.bench.export --environments build/bench

clean:
	rm -rf build dist out demo-out $(LIBRARY) .pytest_cache .mypy_cache .ruff_cache
