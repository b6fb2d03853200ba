# The commands of the project, such as `make run` and `make test`. Each target sets up all that it needs;
# nothing is installed system-wide.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: run test test-processors test-browser screenshots gpu-check drills test-drills test-wheel check audit sbom package ui docs bench claims clean setup setup-dev constraints help

PY := .venv/bin/python
PORT ?= 5000
RUN ?= runs/digits
# All tests of a file run in one process, as they often share a cluster or a search. Three processes keep
# two cores busy, since a test of a cluster spends much of its time waiting for Ray's processes.
TEST_PROCESSES = --numprocesses 3 --dist loadfile --no-loadscope-reorder
# Drills spend most of their time waiting: for starts, for what must not happen, for an absent server.
# A process that has finished its tests takes some of another.
DRILL_PROCESSES = --numprocesses 3 --dist worksteal
export PYTHON
# Compiled modules are kept (in __pycache__, until `make clean`), whatever the shell sets. Without them,
# each test process compiles all tests, and each command that a test starts compiles all of krscale.
unexport PYTHONDONTWRITEBYTECODE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup ## distil the ladder of the embedded example; ARGS="..." goes to krscale.tune
	@$(PY) -m krscale.tune $(ARGS)

test: setup-dev ## run the tests; ARGS="..." goes to pytest, e.g. ARGS="-m 'not cluster'"
	@$(PY) -m pytest $(TEST_PROCESSES) $(ARGS)

test-processors: setup-dev ## run the numerical tests with the instructions of other processors (minutes)
	@$(PY) scripts/processors.py $(TEST_PROCESSES) $(ARGS)

test-browser: setup-dev ## run the tests that open MLflow in a real Chromium (Debian: chromium, chromium-driver)
	@$(PY) -m pytest -m browser $(ARGS)

screenshots: setup-dev ## write curve.html and report.html of a finished run as images into docs/images; RUN=runs/digits
	@$(PY) scripts/screenshots.py $(RUN)

drills: setup-dev ## kill, damage and overload searches, and check that they survive (up to an hour); ARGS="..." goes to pytest
	@rm -f build/drills.jsonl
	@$(PY) -m pytest $(DRILL_PROCESSES) -m drill --drill-record build/drills.jsonl $(ARGS); ended=$$?; \
		$(PY) scripts/write_reliability.py build/drills.jsonl && exit $$ended

test-drills: drills

test-wheel: setup-dev ## install the wheel in fresh environments of Python 3.11 to 3.14, and use it (minutes)
	@$(PY) scripts/try_wheel.py

check: setup-dev ## check formatting, lint, types, the direction of imports, files
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports
	@SKIP=ruff-check,ruff-format,mypy,lint-imports $(PY) -m pre_commit run --all-files

ui: setup ## open the MLflow UI of the local runs, on this machine only; PORT=5000
	@$(PY) -m krscale ui --port $(PORT)

audit: ## compare constraints.txt with the known advisories; fails if no database can be reached
	@scripts/audit.sh audit

sbom: ## write build/sbom.json, a bill of materials (CycloneDX) of constraints.txt
	@scripts/audit.sh sbom

package: ## write build/job.zip, with what a job needs from the last commit (0.8 MB); ARGS="my_models.py" adds committed files
	@mkdir -p build && { git archive --format=zip --output build/job.part HEAD krscale jobs search_spaces $(ARGS) || { rm -f build/job.part; echo "make package: only what is committed can be packed" >&2; exit 2; }; } && mv build/job.part build/job.zip

docs: ## build the documentation as a site, build/site; ARGS=serve shows it while you write
	@scripts/docs.sh $(ARGS)

bench: setup ## run every program in benchmarks/, except those that take hours, install peers or need a GPU; ARGS="..." goes to each
	@set -e; for file in benchmarks/[a-z]*.py; do \
		case "$$file" in benchmarks/claims.py|benchmarks/own_folder.py|benchmarks/gpu_check.py) continue;; esac; \
		echo "$$file"; $(PY) "$$file" $(ARGS); \
	done

bench-%: setup ## run one of them: make bench-step runs benchmarks/step.py
	@$(PY) benchmarks/$(subst -,_,$*).py $(ARGS)

gpu-check: setup ## check the GPU of this machine: numerics, speed, memory (exit code 2 if there is none)
	@$(PY) benchmarks/gpu_check.py $(ARGS)

claims: setup ## measure the paper's claims (hours; ARGS=--quick: minutes, ARGS=--dry-run: the plan)
	@$(PY) benchmarks/claims.py $(ARGS)

setup: ## create .venv with what a run needs (other targets do this first)
	@scripts/setup.sh

setup-dev: ## the same, with the tools of tests and checks
	@scripts/setup.sh dev

constraints: setup-dev ## write constraints.txt from the packages in .venv
	@scripts/lock.sh

clean: ## remove caches and build leftovers; .venv and runs stay
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	@find . \( -name .git -o -name .venv -o -path ./runs \) -prune -o \
		-name __pycache__ -type d -prune -exec rm -rf {} +
