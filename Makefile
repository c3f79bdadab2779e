# Needs python3 (3.11 or later) with pip, make and git; no root, no uv, no Docker. Everything made lands in .tools
# and .venv; a stamp in .venv makes the second run instant.

PYTHON ?= python3
PYTEST_ARGS ?=

UV := .tools/bin/uv
BIN := .venv/bin
INSTALLED := .venv/.installed
BENCH_INSTALLED := .venv-bench/.installed

# An unset or unwritable HOME must not matter; no interpreter is ever downloaded; an activated environment or a
# user's site-packages do not leak in. Certificates are the system's, as for pip: company proxies sign with
# their own.
export UV_CACHE_DIR ?= $(CURDIR)/.tools/cache
export UV_PYTHON_PREFERENCE := system
export UV_PYTHON_DOWNLOADS := never
export UV_NO_CONFIG := 1
export UV_SYSTEM_CERTS ?= 1
export PYTHONNOUSERSITE := 1
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

# pip's own mirror setting, which uv does not read, is handed on to it.
with_index = UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(PYTHON) -m pip config get global.index-url 2>/dev/null || true)}}"
uv_pip = $(with_index) $(UV) pip

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check lint view types imports format conformance slow chaos fuzz bench bench-scale bench-http bench-security bench-telemetry bench-flower lock clean

help:
	@echo "make demo         Redis, a coordinator, agents and Flower; a real job; one agent killed on the way"
	@echo "make test         unit, integration, acceptance and architecture tests, and faults of 90 s"
	@echo "make check        ruff, mypy, import-linter (one by one: make lint, make types, make imports)"
	@echo "make slow         what make test leaves out of these"
	@echo "make conformance  Celery applications on the mesh's transport"
	@echo "make chaos        the whole fault matrix, under 30 minutes (CHAOS=ci: ten minutes of it)"
	@echo "make fuzz         20,000 requests that are made up, to a coordinator"
	@echo "make bench        throughput beside other task queues (make bench-scale: larger meshes; make bench-http: the API;"
	@echo "                  make bench-security, -telemetry, -flower: what each costs)"
	@echo "make format       let ruff correct and lay out the sources"
	@echo "make lock         make requirements.lock anew from pyproject.toml"
	@echo "make clean        remove everything that make made"

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Agent Mesh needs Python 3.11 or later; run: make PYTHON=python3.12 (or another)" >&2; exit 1; }
	$(PYTHON) -m pip install --quiet --no-cache-dir --disable-pip-version-check --target .tools --upgrade uv
	@touch $@

.venv/pyvenv.cfg: $(UV)
	$(UV) venv --quiet --clear --python "$$(command -v $(PYTHON))" .venv

$(INSTALLED): .venv/pyvenv.cfg pyproject.toml $(wildcard requirements.lock)
	@if [ -f requirements.lock ]; then \
		$(uv_pip) install --quiet --python $(BIN)/python --requirements requirements.lock && \
		$(uv_pip) install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	else \
		$(uv_pip) install --quiet --python $(BIN)/python --editable '.[demo,test,dev]'; \
	fi
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/mesh demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 tests/unit tests/integration tests/acceptance --chaos ci -m "ci and not fuzz" $(PYTEST_ARGS)

conformance: $(INSTALLED)
	$(BIN)/python -m pytest tests/conformance $(PYTEST_ARGS)

# Rows mostly wait, so more of them run side by side than there are cores.
CHAOS ?= all

chaos: $(INSTALLED)
	$(BIN)/python -m pytest -n 4 --dist worksteal tests/chaos --chaos $(CHAOS) --chaos-report chaos-report.json $(PYTEST_ARGS)

# 20,000 requests: from the OpenAPI document, and bytes that are nearly some.
fuzz: $(INSTALLED)
	FUZZ_REQUESTS=2000 FUZZ_WIRE=18000 $(BIN)/python -m pytest -n 2 --chaos ci tests/acceptance/test_api_fuzz.py tests/acceptance/test_wire_fuzz.py $(PYTEST_ARGS)

# mypy and import-linter read folders, not installations: this view has the package in its installed shape, with
# workers/ and tasks/ inside mesh/.
VIEW := .tools/view

check: lint types imports

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

view: $(INSTALLED)
	@rm -rf $(VIEW) && mkdir -p $(VIEW)/mesh && \
		ln -s $(CURDIR)/mesh/* $(CURDIR)/workers $(CURDIR)/tasks $(VIEW)/mesh/ && rm -f $(VIEW)/mesh/__pycache__

types: view
	cd $(VIEW) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

imports: view
	cd $(VIEW) && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.import_linter_cache

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Other task queues have dependencies of their own that must not hold ours back: a separate environment.
$(BENCH_INSTALLED): $(UV) pyproject.toml
	$(UV) venv --quiet --clear --python "$$(command -v $(PYTHON))" .venv-bench
	$(uv_pip) install --quiet --python .venv-bench/bin/python --editable '.[demo,bench]'
	@touch $@

bench: $(BENCH_INSTALLED)
	.venv-bench/bin/python -m benchmarks.compare $(BENCH_ARGS)

# Does a larger mesh cost more? What does the HTTP service take?
bench-scale bench-http: $(BENCH_INSTALLED)
	.venv-bench/bin/python -m benchmarks.$(subst http,http_submit,$(@:bench-%=%)) $(BENCH_ARGS)

# What does one thing cost, with it and without?
bench-security bench-telemetry bench-flower: $(BENCH_INSTALLED)
	.venv-bench/bin/python -m benchmarks.overhead $(@:bench-%=%) $(BENCH_ARGS)

# uv.lock holds download addresses and stays out of the repository; the export has versions and hashes only.
lock: $(UV)
	@work="$$(mktemp -d)" && trap 'rm -rf "$$work"' EXIT && cp pyproject.toml "$$work" && \
	$(with_index) $(UV) lock --project "$$work" && \
	$(UV) export --quiet --frozen --project "$$work" --no-emit-project --no-header --no-annotate \
		--format requirements-txt --extra demo --extra test --extra dev > "$$work/requirements.lock" && \
	cp "$$work/requirements.lock" requirements.lock

clean:
	rm -rf .tools .venv .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
		chaos-report.json
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
