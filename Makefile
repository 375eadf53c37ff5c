# Short names for the commands of README.md.

.PHONY: setup demo check test lint docs site benchmark gpu soak

setup:
	@requirements/setup.sh

demo: setup
	.venv/bin/python -m experiments demo

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: setup
	.venv/bin/python docs/generate.py
	.venv/bin/python docs/draw_curves.py

site: setup
	.venv/bin/python -m properdocs build --strict

benchmark: setup
	@requirements/setup.sh peers
	.venv/bin/python -m benchmarks games --publish
	.venv/bin/python -m benchmarks training --publish

gpu: setup
	.venv/bin/python -m benchmarks gpu --publish

soak: setup
	.venv/bin/python -m tests.integration.soak --seconds 600

# A file's tests stay in one worker, which makes its fixtures once; tests/conftest.py says which files go first.
PYTEST = .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20

# Lint, types and the tests that take under two seconds each: before every commit.
check: lint
	$(PYTEST) -m "not compile and not process and not train and not serve and not gpu"

# Everything; what this machine cannot run is reported as skipped.
test: lint
	$(PYTEST)
