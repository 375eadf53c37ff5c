# Short names for the commands of README.md.

.PHONY: setup demo test lint

setup:
	@requirements/setup.sh

demo: setup
	.venv/bin/python demo.py

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint
	.venv/bin/python -m pytest
