# make rollout: set up and run the default evaluation. make test: set up and run all checks.
# The environment is made once, in .venv, and again whenever what it is made from changes.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# Where other programs' environments lie that tests speak with; kept for the next checkout.
export VLA_PEERS ?= $(HOME)/.cache/vla_runtime/peers

.PHONY: rollout test setup peers lint clean

rollout: setup
	@$(PY) -m vla_runtime.rollout

test: setup peers lint
	@$(PY) -m pytest -n auto --dist loadfile

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m mypy

peers: setup
	@PYTHON=$(PY) sh tests/peers.sh "$(VLA_PEERS)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt setup.sh
	@PYTHON=$(PYTHON) sh setup.sh $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
