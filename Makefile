PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PYTEST_ARGS ?=
BENCH_ARGS ?=
WORKERS ?= 2
QUICK ?= 1
DOCS := .venv-docs
SITE := docs/_build
EMPTY := .venv-wheel
OLDEST := .venv-oldest
OLDEST_JAX := 0.8.0
SMOKE_TESTS := tests/test_readme.py tests/test_extending.py tests/tracing/test_varying.py

define SMOKE
import numpy as np, widelimit as wl
net = wl.stax.serial(wl.stax.Dense(512), wl.stax.Relu(), wl.stax.Dense(1))
x = np.eye(3, dtype=np.float32)
found = [np.asarray(net.kernel_fn(x, None, 'ntk', engine=e)) for e in ('fused', 'reference')]
np.testing.assert_allclose(*found, rtol=1e-5)
print(wl.choose_engine(net, x.shape).name, found[0][0])
endef
export SMOKE

.DEFAULT_GOAL := help
.PHONY: help env demo study test test-all check wheel oldest docs check-docs format bench bench-finite \
	bench-estimators clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  \1\t/' | expand -t 16

env: $(STAMP)  ## Make .venv: the package in editable mode, every extra, the development tools

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all,dev]"
	@touch $@

demo: env  ## Run the demonstration; figures go to demo_output/
	$(BIN)/python -m examples.demo

study: env  ## Measure how lazily networks train, by width; figure in study_output/
	$(BIN)/python -m examples.lazy_training

test: env  ## Run the tests, less those marked slow; most of them compiled fast
	WIDELIMIT_QUICK_COMPILE=$(QUICK) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(PYTEST_ARGS)

test-all: env  ## Run every test, compiled as for users
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

check: env  ## Check format, lint and types: changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src

wheel:  ## Build the wheel, and compute a kernel with it in an environment that has nothing else
	rm -rf $(EMPTY) dist
	$(PYTHON) -m venv $(EMPTY)
	$(EMPTY)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(EMPTY)/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd $(EMPTY) && bin/python -c "$$SMOKE"

oldest:  ## Run some of the tests with the oldest JAX that is supported
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		jax==$(OLDEST_JAX) jaxlib==$(OLDEST_JAX) beartype pytest
	WIDELIMIT_QUICK_COMPILE=1 $(OLDEST)/bin/python -m pytest -q -m "not slow" $(SMOKE_TESTS)

$(DOCS)/.stamp: pyproject.toml
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[all,docs]"
	@touch $@

docs: $(DOCS)/.stamp  ## Build the site: docs/_build/index.html; a warning is an error
	$(DOCS)/bin/python -m sphinx -E -W --keep-going --quiet -b html docs $(SITE)

check-docs: docs  ## Open every page of the site in Chromium or Chrome
	$(DOCS)/bin/python -m tools.check_site $(SITE)

format: env  ## Format the code and apply the safe fixes of the linter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env  ## Time the library beside another one; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

bench-finite: env  ## Time empirical kernels beside two other libraries; writes docs/finite_benchmarks.md
	$(BIN)/python -m benchmarks.finite --output docs/finite_benchmarks.md $(BENCH_ARGS)

bench-estimators: env  ## Compare estimators with those of scikit-learn; writes docs/estimators_benchmark.md
	$(BIN)/python -m benchmarks.estimators --output docs/estimators_benchmark.md $(BENCH_ARGS)

clean:  ## Remove the environment, caches and outputs
	rm -rf $(VENV) $(DOCS) $(EMPTY) $(OLDEST) .mypy_cache .pytest_cache .ruff_cache build dist demo_output study_output \
		benchmarks/.environments benchmarks/.results \
		$(SITE) docs/reference/generated docs/tutorials docs/sg_execution_times.rst
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
