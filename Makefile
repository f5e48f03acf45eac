# `make demo` and `make test` do all the set-up they need; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= demo-output
DEMO_TASKS := digits photos orientation
# One stamp per pyproject.toml: the environment is rebuilt when the dependencies change, or when
# the interpreter behind it is gone.
STAMP := $(VENV)/.installed-$(shell cksum pyproject.toml | cut -d' ' -f1)
TEST_WORKERS ?= 2
TRITON := .venv-triton
# What installs into .venv; other resolvers can take the oldest versions that pyproject.toml allows.
INSTALLER ?= $(BIN)/python -m pip install --progress-bar on

# Threads that spin while they wait are several times slower whenever another program runs.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help install demo test test-triton lint types docs check dist clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with everything the project needs on a CPU

ifneq ($(shell $(BIN)/python -c 'import glora_deploy' 2>/dev/null && echo works),works)
.PHONY: $(STAMP)
endif
$(STAMP):
	@$(BIN)/python -c '' 2>/dev/null || rm -rf $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALLER) -e '.[cpu,demo,dev,docs,ray,report,rtx,s3,serve]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: install ## train, search, merge, prove and export three tasks; at most 4 minutes on 2 cores
	rm -rf $(STORE)
	@# A network this small trains faster on one thread than on two.
	@set -e; export OMP_NUM_THREADS=1; for task in $(DEMO_TASKS); do \
	  echo "==> glora train --task $$task --schedule short --compare-lora --store $(STORE)"; \
	  $(BIN)/glora train --task $$task --schedule short --compare-lora --store $(STORE); \
	done
	$(BIN)/glora export $(DEMO_TASKS:%=--task %) --fmt merged --fmt onnx --store $(STORE)
	$(BIN)/glora export $(DEMO_TASKS:%=--task %) --fmt onnx --precision fp16 --store $(STORE)
	$(BIN)/glora list --store $(STORE)
	@echo "Everything lies in $(STORE)/TASK/VERSION: the delta and its manifest, and below exports/ what ships."

test: install ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS)

test-triton: install $(TRITON)/.installed ## tests against a real Triton server, in an environment of its own
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serving/oracle

# Nothing but what the server and the models in it import; it was built for numpy 1.
$(TRITON)/.installed:
	rm -rf $(TRITON)
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet 'numpy<2' onnxruntime
	$(TRITON)/bin/python -m pip install --quiet --no-deps nvidia-pytriton==0.7.0
	@touch $@

lint: install ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy, strict
	$(BIN)/mypy

docs: install ## the documentation as a site, in site/
	@# The theme advertises its successor on stderr.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

check: lint types test ## what continuous integration runs

dist: ## the sdist, and the wheel built from it, in dist/; docs/releasing.md says what for
	rm -rf dist
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'build>=1.2'
	$(BIN)/python -m build

clean: ## remove the environment, caches and the demo's output
	rm -rf $(VENV) $(TRITON) $(STORE) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
