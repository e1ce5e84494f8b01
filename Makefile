# Two commands do everything on a machine with git, make and Python 3.10+: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKS := $(VENV)/.ready-checks
# Without setuptools' boxed warning that an editable installation looks into this folder: it is meant to.
INSTALL := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --editable
OUT ?= data/shards
RUN ?= runs/srcnn
CONFIG ?= configs/train.yaml
TEST_WORKERS ?= 2

.PHONY: help setup lint types test test-slow test-all shards train demo try docs fuzz test-slurm bench bench-gpu bench-loading chaos clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make the environment in .venv and install what restoring and training need

# An environment that is there, VENV=..., is used as it is: a torch and torchvision in it are kept.
$(READY): setup.cfg setup.py pyproject.toml
	@$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) -c 'import sys; \
	sys.exit("Python 3.10 or newer is needed, this is " + sys.version) if sys.version_info < (3, 10) else 0'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) \
	|| { echo "no venv here; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing PyTorch and the rest into $(VENV): gigabytes, some minutes"
	@$(INSTALL) '.[train,formats]'
	@touch $@

$(CHECKS): $(READY)
	@echo "installing what tests and benchmarks need into $(VENV): a minute or two"
	@$(INSTALL) '.[test]'
	@touch $@

lint: $(CHECKS)  ## ruff
	$(BIN)/ruff check --quiet .

types: $(CHECKS)  ## mypy, strict
	$(BIN)/mypy

# One thread each: two workers whose OpenMP threads wait for each other's take ten times as long on a busy machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

test: lint types  ## lint, types and the default tests: at most 8 minutes on two cores
	$(PYTEST) -m "not slow"

test-slow: $(CHECKS)  ## the other tests, but Slurm's; property tests with more examples: 20 minutes
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile long --ignore tests/cluster/test_slurm.py

test-all: test test-slow  ## every test but Slurm's

shards: $(READY)  ## photos -> shards: make shards PHOTOS=dir [OUT=data/shards] [ARGS='--key value']
	@test -n "$(PHOTOS)" || (echo "say which photos: make shards PHOTOS=dir [OUT=$(OUT)]" >&2; exit 2)
	$(BIN)/python -m shards --config configs/shards.yaml --photos "$(PHOTOS)" --out "$(OUT)" $(ARGS)

train: $(READY)  ## shards -> network, one process: make train [OUT=data/shards] [RUN=runs/srcnn] [CONFIG=...] [ARGS=...]
	$(BIN)/python launch/train.py --config $(CONFIG) --shards "$(OUT)" --run "$(RUN)" $(ARGS)

demo: $(READY)  ## a photograph restored, then a network trained, in four minutes: make demo [PHOTOS=dir] [DEMO=folder]
	@$(BIN)/python -m launch.demo $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(DEMO),--out "$(DEMO)")

# Not in git: 3 MB made of the shipped weights.
docs/try/network.onnx: srcnn/weights/unet-jpeg.safetensors srcnn/models/onnx_graph.py | $(READY)
	$(BIN)/python -c 'import onnx, onnxruntime' 2>/dev/null || $(INSTALL) '.[export]'
	$(BIN)/python -m srcnn export unet-jpeg --onnx $@ --compact --condition

try: docs/try/network.onnx  ## the page that restores photos in a browser, docs/try, at http://localhost:8000
	$(BIN)/python -m http.server --bind localhost --directory docs/try 8000

docs: $(CHECKS)  ## the site of the documentation, into site/; strict: a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

fuzz: $(CHECKS)  ## the readers of foreign files, fuzzed for a minute each: make fuzz [ARGS='--seconds N --target NAME']
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[fuzz]' || true
	$(BIN)/python tests/support/fuzzing.py $(ARGS)

test-slurm: $(CHECKS)  ## the jobs of launch/slurm under real Slurm daemons on this machine, some minutes: needs Debian and root
	@PATH="$$PATH:/usr/sbin"; for tool in slurmctld slurmd munged nft ip; do command -v $$tool >/dev/null || absent=yes; done; \
	test -z "$$absent" || .ci/install slurm-wlm munge nftables iproute2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cluster/test_slurm.py -rs

bench: $(CHECKS)  ## training, shard making, restoring on this processor, an hour: make bench [PHOTOS=dir] [ARGS=--quick]
	$(BIN)/python -m benchmarks.cpu $(if $(PHOTOS),--photos "$(PHOTOS)") $(ARGS)

bench-gpu: $(CHECKS)  ## training and restoring on a GPU, a quarter of an hour: make bench-gpu [PHOTOS=dir] [ARGS=--quick]
	$(BIN)/python -m benchmarks.gpu $(if $(PHOTOS),--photos "$(PHOTOS)") $(ARGS)

bench-loading: $(CHECKS)  ## data loaders side by side, half an hour: make bench-loading [PHOTOS=dir] [ARGS=--quick]
	$(BIN)/python -m benchmarks.loading $(if $(PHOTOS),--photos "$(PHOTOS)") $(ARGS)

chaos: $(CHECKS)  ## a hundred random faults against real trainings, half an hour: make chaos [ARGS='--faults 100 --seed 1']
	PYTHONPATH=tests:tests/support $(BIN)/python -m chaos $(ARGS)

clean:  ## remove what tests and the demo with drawn photos made; .venv, data, runs and what was trained on own photos stay
	rm -rf demo/skylines build dist site *.egg-info .pytest_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
