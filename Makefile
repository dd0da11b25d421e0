# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.
# On a machine with a GPU: `make test-gpu`, in 10 minutes.
#
#   PYTHON=python3.12    another interpreter for the private environment in .venv
#   SYSTEM_TORCH=1       keep the torch that this interpreter already has (an image's CUDA build, say)
#   PIP_FLAGS="..."      more flags for pip, such as an index to take torch from
#   ARGS="..."           overrides for the demo, such as train.max_minutes=10; options of pytest
#   WORKERS=3            processes that share the tests; 0 = one after the other

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 0
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
SYSTEM_TORCH ?=
NEWEST := build/newest
QUICK := tests/config tests/model tests/kernels tests/data tests/checkpoint tests/hf tests/test_train.py

# An environment keeps what it was made with: asking for something else means making it anew.
MADE_WITH := $(strip $(shell cat $(VENV)/.made-with 2>/dev/null))
WANTED := $(strip $(PYTHON) $(if $(SYSTEM_TORCH),system-torch))
ifneq ($(MADE_WITH),)
ifeq ($(filter clean,$(MAKECMDGOALS)),)
ifneq ($(findstring command line,$(origin PYTHON) $(origin SYSTEM_TORCH)),)
ifneq ($(MADE_WITH),$(WANTED))
$(error $(VENV) was made with "$(MADE_WITH)", not "$(WANTED)": run `make clean` first)
endif
endif
endif
SYSTEM_TORCH := $(findstring system-torch,$(MADE_WITH))
endif

.PHONY: demo test test-all test-gpu check docs site constraints clean
.DELETE_ON_ERROR:
# Two targets may install into the same environment.
.NOTPARALLEL:

demo: $(VENV)/.installed
	$(BIN)/llmkit train configs/demo.yaml $(ARGS)

test: $(VENV)/.installed-dev
	$(PYTEST) $(ARGS)

test-all: $(VENV)/.installed-dev
	$(PYTEST) -m "" $(ARGS)

test-gpu: $(VENV)/.installed-dev
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("torch finds no GPU here")'
	$(BIN)/python -m pytest -m cuda $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python -c 'from llmkit.config.keys import markdown; print(markdown(), end="")' > build/config.md
	$(BIN)/python docs/commands.py > build/commands.md
	$(BIN)/python docs/python_api.py > build/python-api.md
	$(BIN)/python docs/curves.py > build/curves.md
	mv build/config.md build/commands.md build/python-api.md build/curves.md docs
	$(BIN)/python docs/pictures.py

site: $(VENV)/.installed-dev
	$(BIN)/python docs/site.py

# The newest versions that pyproject.toml allows, tried, and written down; what torch brings for GPUs is left to it.
constraints: $(VENV)/bin/python
	rm -rf $(NEWEST)
	$(BIN)/python -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[dev,gpu]'
	$(NEWEST)/bin/python -m pytest -n $(WORKERS) -q $(or $(ARGS),$(QUICK))
	$(NEWEST)/bin/python -m pip freeze --exclude-editable > $(NEWEST)/freeze.txt
	{ head -n 1 constraints.txt; grep -E '^[A-Za-z0-9_.-]+==' $(NEWEST)/freeze.txt \
	  | grep -v -E '^(nvidia-(cu|nccl|nvjitlink|nvshmem|nvtx)|cuda-)' | sed 's/+.*//' | LC_ALL=C sort -f; \
	} > $(NEWEST)/constraints.txt
	mv $(NEWEST)/constraints.txt constraints.txt
	git --no-pager diff --stat constraints.txt

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "llmkit needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`."; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
ifneq ($(SYSTEM_TORCH),)
	@$(PYTHON) -c 'import torch; print("keeping torch", torch.__version__)' || { \
	  echo "SYSTEM_TORCH=1, but $(PYTHON) has no torch: name an interpreter that has (PYTHON=...)"; exit 1; }
endif
	$(PYTHON) -m venv $(VENV)
ifneq ($(SYSTEM_TORCH),)
	@# Not --system-site-packages: an image's interpreter may itself be one of a virtual environment.
	$(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "`$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'`/system.pth"
endif
	@echo "$(WANTED)" > $(VENV)/.made-with

# The versions everything is tested with; where torch is the system's, it is not among them.
$(VENV)/constraints.txt: constraints.txt $(VENV)/bin/python
ifneq ($(SYSTEM_TORCH),)
	grep -v -E '^(torch|triton|numpy)==' constraints.txt > $@
else
	cp constraints.txt $@
endif

$(VENV)/.installed: pyproject.toml $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt $(PIP_FLAGS) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt $(PIP_FLAGS) -e '.[dev]'
	@touch $(VENV)/.installed $@
