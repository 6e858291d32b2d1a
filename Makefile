# make demo: recordings -> shards -> training -> babble.wav      make test: the test suite      make help: all targets
#
# Both create .venv if needed. To use another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
BABBLE := $(VENV)/bin/babble
# Newer than pyproject.toml and constraints.txt if the installation is up to date.
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test slow slurm gpu fuzz chaos lint format clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\): .*## \(.*\)/  make \1\t\2/p' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	    echo "babble needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)." \
	        "Choose another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) cannot create a virtual environment. On Debian, install python3-venv." >&2; exit 1; }
	@echo "Installing into $(VENV). This takes a few minutes, once."
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[preprocess,tune,dev]'
	@touch $@

demo: $(INSTALLED) ## Train on tests/speech for 3 minutes and generate babble.wav: speech-like, without words
	$(BABBLE) preprocess --config configs/demo-preprocess.yaml --sources tests/speech --out shards/demo
	$(BABBLE) train --config configs/demo.yaml --data.shards shards/demo --name demo
	$(BABBLE) generate runs/demo --seconds 60 --out babble.wav
	@echo
	@echo "Results:"
	@echo "  babble.wav             8 s of real speech, then one minute of generated speech"
	@echo "  babble.png             its pitch, energy and spectrum"
	@echo "  runs/demo/report.html  the training, with players; open it in a browser"
	@echo "  runs/demo              config, metrics, checkpoints, samples"
	@echo "  shards/demo            the training speech as Codec 2 frames"
	@echo "Next:"
	@echo "  $(BABBLE) generate runs/demo --seconds 60 --temperature 0.9 --out other.wav"
	@echo "  $(BABBLE) live runs/demo      plays it in a browser, and the bundled voice, which has words"
	@echo "  $(BABBLE) voice my.mp3        makes a voice from your own recordings"
	@echo "  README.md shows how to train on a whole audiobook."

test: $(INSTALLED) ## Run the test suite
	$(RUN) -m pytest -n 2 --dist loadfile

slow: $(INSTALLED) ## Run the slow tests: virtual environments, and comparisons of trainings; some minutes
	$(RUN) -m pytest -m slow

slurm: $(INSTALLED) ## Run the tests that need Slurm, on a test cluster of three nodes
	$(RUN) -m pytest -m slurm -p no:xdist

gpu: $(INSTALLED) ## Run the tests that need a GPU; without one they are skipped
	$(RUN) -m pytest tests/gpu -m gpu -p no:xdist

fuzz: $(INSTALLED) ## Decode thousands of damaged recordings; some minutes
	PYTHONPATH=.:tests $(RUN) tests/fuzz.py

chaos: $(INSTALLED) ## Kill four commands at random moments and compare their results; two hours
	PYTHONPATH=.:tests $(RUN) tests/chaos.py

lint: $(INSTALLED) ## Check style, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(INSTALLED) ## Sort imports and format the code
	$(VENV)/bin/ruff check --select I --fix
	$(VENV)/bin/ruff format

clean: ## Remove the environment and caches; keep runs/ and shards/
	rm -rf $(VENV) *.egg-info build .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
