# One command checks everything: make check
PYTHON ?= python

.PHONY: check lint types borders test
check: lint types borders test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

borders:
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"

# One worker a core, eight at most: tests wait more than they compute.
test:
	$(PYTHON) -m pytest -n logical --maxprocesses 8 --dist worksteal
