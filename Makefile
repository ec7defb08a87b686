# What a person and CI run. `make` alone lists it. Needs Python 3.11+, make and a network.
#
# Everything made lies in .venv/, .data/ and .stamps/; `make clean` removes it.
# Progress and faults go to stderr: the stdout of `make bench` is JSON lines and nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DATA := .data
STAMPS := .stamps
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
IMPORTERS := $(wildcard edge_runtime/vehicle/models/importers/*.py)

# Debian installs Mosquitto where only root's PATH looks.
export PATH := $(PATH):/usr/sbin

# One line to stderr, in bold on a terminal.
say = if [ -t 2 ]; then printf '\033[1m==> %s\033[0m\n' $(1) >&2; else printf '==> %s\n' $(1) >&2; fi

# Quiet but for faults; the package lists of a fresh machine are empty.
apt_install = { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
  apt-get install -qq --no-install-recommends $(1) >/dev/null; }

.PHONY: help demo test test-system check bench bench-peers chaos fuzz openapi planted clean setup models mosquitto chromium \
  prometheus check-style check-types check-layers check-schemas

help:
	@echo 'make demo    the whole system on this machine, with a report (ARGS="--cars 4")'
	@echo 'make test    every test (ARGS="-k contract")'
	@echo 'make test-system  the systemd units on a real systemd, in a container (Debian, as root)'
	@echo 'make check   style, types, layers, generated schemas; `make -k check` shows all faults'
	@echo 'make bench   measurements, one JSON line each on stdout'
	@echo 'make bench-peers  this system beside MLServer and LitServe, fetched for it (400 MB)'
	@echo 'make openapi requests made from the OpenAPI document (OPENAPI_EXAMPLES=2000)'
	@echo 'make fuzz    every decoder, with damaged inputs (ARGS="--seconds 600 --processes 2")'
	@echo 'make chaos   faults on real processes, then a verdict (ARGS="--minutes 3 --seed 7")'
	@echo 'make planted bugs planted in copies of the package, hunted by the simulation'
	@echo 'make setup   only the virtual environment, with the tools of a developer'
	@echo 'make models  only the models and the data of the demo and the tests'
	@echo 'make clean   remove everything that was made'

demo: $(STAMPS)/demo $(STAMPS)/models
	@$(call say,'The main job')
	@$(BIN)/edge-runtime demo --report demo-report.html $(ARGS)

test: $(STAMPS)/dev $(STAMPS)/models $(STAMPS)/node mosquitto chromium prometheus
	@$(call say,'Tests')
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# The root (about 300 MB) and the wheels are kept in .data; a test never writes to the root.
test-system: $(STAMPS)/dev $(STAMPS)/models $(DATA)/system/debian system-wheels
	@$(call say,'Tests on a booted systemd')
	@EDGE_RUNTIME_TEST_ROOT=$(abspath $(DATA)/system) $(BIN)/python -m pytest tests/system $(ARGS)

check: check-style check-types check-layers check-schemas
	@$(call say,'All checks passed')

check-style: $(STAMPS)/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

check-types: $(STAMPS)/dev
	@$(BIN)/mypy

check-layers: $(STAMPS)/dev
	@$(BIN)/lint-imports

check-schemas: $(STAMPS)/dev
	@$(BIN)/edge-runtime schemas check

# A file that begins with _ serves the others. One that fails does not keep the next from running.
bench: $(STAMPS)/dev $(STAMPS)/models mosquitto chromium
	@failed=; for file in bench/[!_]*.py; do \
	  $(call say,"$$file"); \
	  $(BIN)/python "$$file" $(ARGS) || failed="$$failed $$file"; \
	done; \
	if [ -n "$$failed" ]; then echo "error: failed:$$failed" >&2; exit 1; fi

# The peers' packages have an environment of their own, .data/peers.
bench-peers: $(STAMPS)/dev $(STAMPS)/models mosquitto
	@$(BIN)/python bench/peers.py --compare

# Not a test: minutes to hours of faults. One JSON object on stdout.
fuzz: $(STAMPS)/fuzz
	@$(call say,'Fuzzing')
	@$(BIN)/python tests/fuzz/campaign.py $(ARGS)

OPENAPI_EXAMPLES ?= 300
openapi: $(STAMPS)/dev
	@OPENAPI_EXAMPLES=$(OPENAPI_EXAMPLES) $(BIN)/python -m pytest -n 0 -s \
	  tests/e2e/test_openapi_document.py $(ARGS)

chaos: $(STAMPS)/dev $(STAMPS)/models mosquitto
	@$(BIN)/python tests/chaos/run.py $(ARGS)

# Up to ten minutes: every mutation of tests/sim/planted, until a seed notices. Writes the table.
planted: $(STAMPS)/dev
	@PYTHONPATH=tests/sim $(BIN)/python -m planted.hunt $(ARGS)

setup: $(STAMPS)/dev

models: $(STAMPS)/models

clean:
	rm -rf $(VENV) $(STAMPS) $(DATA) demo-report.html dist build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the virtual environment ------------------------------------------------------------------

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || \
	  { echo 'error: no $(PYTHON); install Python 3.11 or newer, or say: make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1)" >&2; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  package="python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    $(call say,"Installing $$package"); \
	    $(call apt_install,"$$package"); \
	  else \
	    echo "error: $(PYTHON) has no venv; run: sudo apt-get install $$package" >&2; exit 1; \
	  fi; \
	fi
	@$(call say,'Making $(VENV)')
	@rm -rf $(VENV) $(STAMPS)/demo $(STAMPS)/dev $(STAMPS)/fuzz
	@$(PYTHON) -m venv $(VENV)

$(STAMPS)/demo: $(VENV)/pyvenv.cfg pyproject.toml
	@$(call say,'Installing edge-runtime and what the demo needs (about 150 MB)')
	@$(PIP) install --editable '.[demo]' >&2
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: $(VENV)/pyvenv.cfg pyproject.toml
	@$(call say,'Installing edge-runtime and what its developers need (about 280 MB)')
	@$(PIP) install --editable '.[dev]' >&2
	@mkdir -p $(STAMPS) && touch $(STAMPS)/demo $@

# Without atheris (it has no wheel for every Python) only its half of the campaign is missing.
$(STAMPS)/fuzz: $(STAMPS)/dev
	@$(call say,'Installing atheris')
	@$(PIP) install --editable '.[fuzz]' --only-binary atheris >&2 || \
	  echo 'note: atheris could not be installed; inputs are not guided by coverage' >&2
	@touch $@

# --- a computer to install on -------------------------------------------------------------------

SYSTEM := $(DATA)/system
WHEELS := $(SYSTEM)/wheels
# Debian 12 has Python 3.11, whatever this machine runs.
WHEELS_FOR := --only-binary=:all: --implementation cp --python-version 3.11 \
  $(foreach tag,2_28 2_17,--platform manylinux_$(tag)_$(shell uname -m)) \
  --platform manylinux2014_$(shell uname -m)

$(SYSTEM)/debian:
	@if [ "$$(id -u)" != 0 ]; then echo 'error: make test-system boots a container: run it as root' >&2; exit 1; fi
	@for tool in debootstrap systemd-nspawn systemd-analyze; do command -v $$tool >/dev/null || missing=1; done; \
	if [ -n "$${missing:-}" ]; then \
	  $(call say,'Installing debootstrap and systemd-container'); \
	  $(call apt_install,debootstrap systemd-container); \
	fi
	@$(call say,'Making a Debian 12 to boot (1 to 3 minutes)')
	@rm -rf $@.new && mkdir -p $(SYSTEM)
	@debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates \
	  bookworm $@.new http://deb.debian.org/debian >$(SYSTEM)/debootstrap.log || \
	  { tail -20 $(SYSTEM)/debootstrap.log >&2; exit 1; }
	@mv $@.new $@

# This very tree's wheel each time; those that it needs only when pyproject.toml changed.
.PHONY: system-wheels
system-wheels: $(STAMPS)/system-wheels
	@rm -f $(WHEELS)/edge_runtime-*.whl
	@$(PIP) wheel --no-deps --wheel-dir $(WHEELS) . >&2

$(STAMPS)/system-wheels: $(STAMPS)/dev pyproject.toml
	@$(call say,'Fetching the wheels of an installation (about 120 MB)')
	@rm -rf $(WHEELS) && mkdir -p $(WHEELS)
	@$(PIP) wheel --no-deps --wheel-dir $(WHEELS) . >&2
	@$(PIP) download --dest $(WHEELS) $(WHEELS_FOR) \
	  "$$(ls $(WHEELS)/edge_runtime-*.whl)[vehicle,ocr,dispatcher]" >&2
	@touch $@

# --- models, data, broker -----------------------------------------------------------------------

# Any installation will do: order-only, so that the tests' does not ask for the demo's again.
$(STAMPS)/models: $(IMPORTERS) | $(STAMPS)/demo
	@$(call say,'Making the model packages and fetching the data (about 260 MB)')
	@$(BIN)/python -m edge_runtime.vehicle.models.importers --all --out $(DATA)/models \
	  --cache $(DATA)/cache --demo-data $(DATA)/demo --synthetic $(DATA)/synthetic >&2
	@mkdir -p $(STAMPS) && touch $@

# Without Mosquitto its tests skip, and fail where CI=true. Its clients and curl are in the documentation.
mosquitto:
	@if command -v mosquitto mosquitto_sub curl | wc -l | grep -q 3; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  $(call say,'Installing mosquitto'); \
	  $(call apt_install,mosquitto mosquitto-clients curl) || \
	  echo 'warning: mosquitto could not be installed; its tests skip' >&2; \
	else \
	  echo 'note: tests on a real Mosquitto skip; run: sudo apt-get install mosquitto mosquitto-clients' >&2; \
	fi

# Without Chromium the tests of the dashboard's pages skip, and fail where CI=true.
chromium:
	@if command -v chromium >/dev/null || command -v chromium-headless-shell >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  $(call say,'Installing chromium'); \
	  $(call apt_install,chromium) || \
	  echo 'warning: chromium could not be installed; its tests skip' >&2; \
	else \
	  echo 'note: tests in a browser skip; run: sudo apt-get install chromium' >&2; \
	fi

# Without Prometheus the test of the Grafana dashboard skips, and fails where CI=true.
prometheus:
	@if command -v prometheus >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  $(call say,'Installing prometheus'); \
	  $(call apt_install,prometheus) || \
	  echo 'warning: prometheus could not be installed; its test skips' >&2; \
	else \
	  echo 'note: the test of the Grafana dashboard skips; run: sudo apt-get install prometheus' >&2; \
	fi

# Without Node.js the tests of its example and of the AsyncAPI document skip, and fail where CI=true.
NODE_PARTS := examples/subscribe/javascript tests/node

$(STAMPS)/node: $(NODE_PARTS:%=%/package-lock.json)
	@if ! command -v npm >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  $(call say,'Installing nodejs and npm'); \
	  $(call apt_install,nodejs npm) || echo 'warning: nodejs could not be installed' >&2; \
	fi; \
	if ! command -v npm >/dev/null; then \
	  echo 'note: tests with Node.js skip; run: sudo apt-get install nodejs npm' >&2; exit 0; \
	fi; \
	$(call say,'Fetching what an example and the tests have from npm (about 70 MB)'); \
	for part in $(NODE_PARTS); do \
	  mkdir -p $(DATA)/node/$$part && cp $$part/package.json $$part/package-lock.json $(DATA)/node/$$part && \
	  npm ci --silent --ignore-scripts --no-audit --no-fund --prefix $(DATA)/node/$$part; \
	done; \
	mkdir -p $(STAMPS) && touch $@
