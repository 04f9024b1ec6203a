# Needs python3 (3.11 or newer), a C compiler and make; everything else is installed into .venv.
#
# Variables: PYTHON=python3.12        the Python that makes .venv
#            PIP_ARGS="..."           more arguments for pip, e.g. an index with CPU builds of PyTorch
#            TEST_ARGS="tests/unit"   arguments for pytest (default: -n 2, two processes)
#            PRIORZERO_CACHE=folder   where models are kept (default ~/.cache/priorzero)

PYTHON ?= python3
PIP_ARGS ?=
TEST_ARGS ?= -n 2

RUN := .venv/bin/python
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test setup models lint clean

help:
	@echo "make demo    set up, fetch the models, train the demonstration (experiment=demo)"
	@echo "make test    set up, fetch the models, run the tests"
	@echo "make setup   install priorzero and its dependencies into .venv (once; 2 to 10 minutes)"
	@echo "make models  fetch the embedded language model and sentence encoder (once; 180 MB)"
	@echo "make lint    ruff, ty and the import contracts"
	@echo "make clean   remove .venv and caches, keep logs and models"

demo: models
	@echo "==> training the demonstration: python train.py experiment=demo (about 17 minutes on two cores)"
	@$(RUN) train.py experiment=demo

test: models
	@echo "==> running the tests (some minutes)"
	@$(RUN) -m pytest $(TEST_ARGS)

setup: $(STAMP)
	@echo "==> .venv is ready"

models: $(STAMP)
	@echo "==> fetching the embedded models (the first time about 180 MB and a minute)"
	@$(RUN) -m priorzero.utils.models

lint: $(STAMP)
	@echo "==> ruff"
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@echo "==> ty"
	@$(RUN) -m ty check --python .venv
	@echo "==> import contracts"
	@.venv/bin/lint-imports --no-cache

# A second run finds the stamp and does nothing; a changed pyproject.toml or constraints.txt installs again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "priorzero needs Python 3.11 or newer, '$(PYTHON)' is not: run make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || \
	  { echo "no C compiler found, and the game interpreters are compiled: install one (on Debian: build-essential)"; exit 1; }
	@echo "==> making .venv with $(PYTHON) (some seconds)"
	@test -x $(RUN) || $(PYTHON) -m venv .venv || \
	  { echo "this Python cannot make environments: install its venv module (on Debian: python3-venv)"; exit 1; }
	@echo "==> installing priorzero and its dependencies (2 to 10 minutes; the download is 1 GB and more with CUDA)"
	@$(RUN) -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

clean:
	@echo "==> removing .venv and caches"
	@rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find priorzero tests -name __pycache__ -type d -prune -exec rm -rf {} +
