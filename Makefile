# `make demo` and `make test` are all a newcomer needs; both set themselves up.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUNS ?= runs/demo
FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo demo-verify demo-ladder transfer bench bench-peers bench-sweep bench-engine bench-gpu test test-slow docs \
	faults soak check format lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "PYTHON=python3.12 picks the interpreter; RUNS=$(RUNS) is where the demo writes,"
	@echo "FLAGS=--config.KEY=VALUE changes its config."

# Without an explicit PYTHON an environment that is already there is kept, whatever its version.
ifneq ($(origin PYTHON),file)
WANTED = $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
else
WANTED = $(shell test -x $(PY) && $(PY) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' || \
	$(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
endif

setup:  ## make the environment .venv, with the command isoflop, from requirements.lock, once
	@LOCK=requirements.lock PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/setup.sh "$(WANTED)"

setup-dev: setup  ## the same, with what tests and checks need
	@LOCK=requirements-dev.lock PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/setup.sh "$(WANTED)"

demo: setup  ## an isoFLOP sweep of language models on real text: U-curves, L(N, D), the report
	@$(PY) -m experiments.sweep --config=configs/sweeps/lm_isoflop.py --workdir=$(RUNS) $(FLAGS)

demo-verify: demo  ## predict runs of 3 and 10 times the demo's largest budget, then train them
	@$(PY) -m experiments.verify --runs=$(RUNS) --rungs=3,10

LADDER ?= runs/ladder
DATA ?= packages
demo-ladder: setup  ## the same up to 100 times, on 82 MB of source or DATA=file.txt: over an hour
	@$(PY) -m experiments.sweep --config=configs/sweeps/lm_isoflop.py --workdir=$(LADDER) \
		--config.data.path=$(DATA) $(FLAGS)
	@$(PY) -m experiments.verify --runs=$(LADDER) --rungs=3,10,33,100

TRANSFER ?= runs/transfer
transfer: setup  ## whether learning rates transfer over widths: coordinate check, optima, regret
	@$(PY) -m experiments.transfer --config=configs/transfer.py --workdir=$(TRANSFER) --lr=0.003 $(FLAGS)

bench: setup  ## how fast the shipped cases train here
	@$(PY) -m experiments.bench

# NANODO and NANOGPT are checkouts, TORCH_PYTHON an interpreter with PyTorch; each may be left out.
PEERS = --nanodo="$(NANODO)" --nanogpt="$(NANOGPT)" --torch_python="$(TORCH_PYTHON)"
bench-peers: setup  ## a step beside those of NANODO=, NANOGPT=, TORCH_PYTHON=, in turn
	@$(PY) -m tools.bench.peers $(PEERS)

bench-sweep: setup  ## a sweep of 24 runs beside one process per run, ours and NANODO='s
	@$(PY) -m tools.bench.sweep --nanodo="$(NANODO)"

bench-engine: setup  ## how long planning, a trivial run and a table of 10,000 runs take
	@$(PY) -m tools.bench.engine

bench-gpu: setup  ## 124M and 350M parameters on one GPU: MFU, and NANOGPT= beside it
	@$(PY) -m tools.bench.gpu $(PEERS)

test: setup-dev  ## the default tests (8 simulated devices, 2 workers)
	@$(PY) -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: setup-dev  ## the tests that take long
	@$(PY) -m pytest -n 3 --dist worksteal -m slow

faults: setup-dev  ## inject every fault of docs/reliability.md and write its table
	@$(PY) -m tools.faults

HOURS ?= 2
soak: setup-dev  ## HOURS=2 of sweeps that are killed, damaged, stalled, their disk filled
	@$(PY) -m tools.kill_drill --hours=$(HOURS)

check: setup-dev  ## ruff (lint and format), basedpyright, import directions
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m basedpyright
	@$(PY) -m pytest -q tests/test_imports.py

docs: setup  ## the documentation as a site, build/site/index.html: strict, and read without a network
	@LOCK=requirements-docs.lock PYTHON="$(PYTHON)" VENV="$(VENV)-docs" sh tools/setup.sh "$(WANTED)"
	@$(PY) -m tools.docs --out=build/docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build

format: setup-dev  ## let ruff format and fix
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

COMPILE = uv pip compile -q --universal --generate-hashes --no-header --no-emit-find-links
DOCS_EXTRA = import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')
lock:  ## rewrite the locks from pyproject.toml (needs uv)
	$(COMPILE) --upgrade --extra data --extra text --extra report --extra track --extra ray --extra slurm --extra export --extra dev \
		-o requirements-dev.lock pyproject.toml
	$(COMPILE) --upgrade --extra data --extra text --extra report -c requirements-dev.lock -o requirements.lock \
		pyproject.toml
	$(PY) -c "$(DOCS_EXTRA)" | $(COMPILE) --upgrade -o requirements-docs.lock -
	@! grep -n '://' requirements.lock requirements-dev.lock requirements-docs.lock

clean:  ## remove the environment and the demo's runs
	rm -rf $(VENV) $(VENV)-docs build $(RUNS)
