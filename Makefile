# make demo      set up .venv and run the demonstration
# make demo-llm  the same on a published model, SmolLM2-135M-Instruct (93 MB to fetch, up to 30 minutes)
# make test      set up .venv and run every check of `make check`
# make test-all  the same, and the slow tests
# make wheel     a wheel in dist/, to be installed anywhere
# make docs      the documentation site in site/, links and anchors checked
# make check     formatting, linting, types, layers, tests
# make test-lowest   the tests with the lowest versions that pyproject.toml accepts, in .venv-lowest

PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
PACKAGE := $(VENV)/.installed-package
LOWEST  := .venv-lowest
SOURCES ?= src tests $(wildcard benchmarks examples scripts)

# Small matrices and several test processes: one thread each is fastest.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

# At most 4 workers: each imports torch.
PYTEST ?= $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo demo-llm setup test test-all test-slow test-lowest wheel docs check format clean

demo: $(PACKAGE)
	$(BIN)/tracenas demo --out demo-out --resume
	@echo "the command: $(BIN)/tracenas (try: $(BIN)/tracenas plan MODEL --params 75%)"

# All cores: its matrices are large enough for several threads.
demo-llm: $(STAMP)
	env -u OMP_NUM_THREADS $(BIN)/tracenas demo --model smollm2 --out demo-llm-out --resume

test: check

test-all: check test-slow docs

setup: $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(PYTEST)

# Exit status 5: there is no slow test (yet), which is no failure.
test-slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu" || [ $$? -eq 5 ]

# An environment of its own: a torch of that age may come with several gigabytes of CUDA libraries.
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e ".[dev]"
	PATH="$(CURDIR)/$(LOWEST)/bin:$$PATH" $(LOWEST)/bin/pytest -n auto --maxprocesses 4 --dist worksteal

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $@

format: $(STAMP)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Redone only when what is to be installed has changed. The demo needs the package alone, checks what `dev` names, too.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(PACKAGE) $@

$(PACKAGE): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tracenas needs Python 3.11 or later as '$(PYTHON)' (another one: make PYTHON=python3.12)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment: on Debian and Ubuntu, apt-get install python3-venv python3-pip" >&2; \
	    rm -rf $(VENV); exit 1; }

# dist/tracenas-VERSION-py3-none-any.whl, for other environments and machines.
wheel: $(BIN)/pip
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
