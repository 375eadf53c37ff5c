# Short names for the commands of README.md.

.PHONY: setup demo test lint benchmark

setup:
	@requirements/setup.sh

demo: setup
	.venv/bin/python demo.py

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

benchmark: setup .venv-peers/bin/python
	.venv/bin/python benchmark.py games

.venv-peers/bin/python:
	python3 -m venv .venv-peers
	.venv-peers/bin/pip install -q -r requirements/peers.txt

test: lint
	.venv/bin/python -m pytest
