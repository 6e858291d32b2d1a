# make demo: recordings -> shards -> training -> babble.wav      make test: the test suite      make help: the rest
#
# Both set up .venv themselves. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Newer than pyproject.toml and constraints.txt once what they name is installed.
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test slow slurm lint format clean

help: ## Say what can be made
	@sed -n 's/^\([a-z]*\): .*## \(.*\)/  make \1\t\2/p' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	    echo "babble needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)." \
	        "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) can't make an environment. Debian has venv in a package of its own: python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): once, some minutes."
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[preprocess,tune,dev]'
	@touch $@

demo: $(INSTALLED) ## Learn from tests/speech and babble for a minute into babble.wav
	$(RUN) -m jobs.preprocess --config configs/demo-preprocess.yaml --sources tests/speech --out shards/demo
	$(RUN) -m babble.train --config configs/demo.yaml --data.shards shards/demo --name demo
	$(RUN) -m babble.generate runs/demo --seconds 60 --out babble.wav
	@echo
	@echo "Made:"
	@echo "  babble.wav   a few real seconds, then a minute that nobody ever said: listen to it"
	@echo "  babble.png   its pitch, energy and spectrum"
	@echo "  runs/demo    the run: config, metrics, checkpoints; open report.html there to see and hear how it learned"
	@echo "  shards/demo  the speech it learned from, as Codec 2 frames"
	@echo "Next:"
	@echo "  $(RUN) -m babble.generate runs/demo --seconds 60 --temperature 0.9 --out other.wav"
	@echo "  README.md shows how to train on a whole audiobook, as babble-rnn did in 2017."

test: $(INSTALLED) ## Run the test suite
	$(RUN) -m pytest -n 2

slow: $(INSTALLED) ## Run the tests that take minutes
	$(RUN) -m pytest -m slow

slurm: $(INSTALLED) ## Run the tests that need a Slurm cluster, on one of three nodes made for them
	$(RUN) -m pytest -m slurm -p no:xdist

lint: $(INSTALLED) ## Check style, format and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(INSTALLED) ## Put imports and format right
	$(VENV)/bin/ruff check --select I --fix
	$(VENV)/bin/ruff format

clean: ## Remove the environment and caches; runs/ and shards/ stay
	rm -rf $(VENV) *.egg-info build .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
