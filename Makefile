# make rollout: set up and run the default evaluation. make test: set up and run all checks.
# The environment is made once, in .venv, and again whenever what it is made from changes.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: rollout test setup lint clean

rollout: setup
	@$(PY) -m vla_runtime.rollout

test: setup lint
	@$(PY) -m pytest -n auto --dist loadfile

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m mypy

setup: $(READY)

$(READY): pyproject.toml constraints.txt setup.sh
	@PYTHON=$(PYTHON) sh setup.sh $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
