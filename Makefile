# make train | test | check | bench-peers | help. Each first installs what it needs, once, into .venv.
PYTHON ?= python3
# Passed on: make train ARGS="lookup seed=1", make test ARGS="tests/store -x"
ARGS ?=

VENV := .venv
PEERS := .venv-peers
PIN = $(shell sed -n 's/^\($(1)==[^ ;]*\).*/\1/p' constraints.txt)
# torch comes first and alone, so that nothing else decides which build of it is taken.
INSTALL = @echo "installing $(2) (once; the first time takes some minutes)" \
	&& $(1)/bin/python -m pip install --quiet --disable-pip-version-check $(call PIN,torch) \
	&& $(1)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: train test check bench-peers help

help:
	@echo "make train        train the tiny agent from scratch (ARGS=\"lookup seed=1\" for another recipe)"
	@echo "make test         run all tests, setting up Docker where that is possible (ARGS= goes to pytest)"
	@echo "make check        lint, types, import directions, documentation"
	@echo "make bench-peers  install the peer libraries apart and compare the training step with theirs"

train: $(VENV)/.train
	@$(VENV)/bin/toolgym train $(ARGS)

test: $(VENV)/.test
	@sh scripts/run-tests.sh $(ARGS)

check: $(VENV)/.check
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright
	$(VENV)/bin/python -m pytest -q tests/test_imports.py tests/test_docstrings.py

bench-peers: $(VENV)/.train $(PEERS)/.installed
	@$(VENV)/bin/toolgym bench step $(ARGS)

# Stamp files: an installation is done again only when one of the files it was made from changes.
$(VENV)/.made: scripts/make-venv.sh
	@sh scripts/make-venv.sh $(PYTHON) $(VENV)
	@touch $@

$(VENV)/.train: $(VENV)/.made pyproject.toml constraints.txt
	$(call INSTALL,$(VENV),toolgym) -e '.[docker,train]'
	@touch $@

# The chat templates inside these two wheels (oracle-ads has that of Hermes) are test data; the packages themselves are
# not used, so neither are their dependencies.
$(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt
	$(call INSTALL,$(VENV),toolgym and its tests) -e '.[docker,train,test]'
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(call PIN,trl) $(call PIN,oracle-ads)
	@touch $@ $(VENV)/.train

$(VENV)/.check: $(VENV)/.made pyproject.toml constraints.txt
	$(call INSTALL,$(VENV),the checkers) -e '.[docker,train,test,check]'
	@touch $@ $(VENV)/.train

$(PEERS)/.installed: scripts/make-venv.sh constraints.txt
	@sh scripts/make-venv.sh $(PYTHON) $(PEERS)
	$(call INSTALL,$(PEERS),the peer libraries) trl
	@touch $@
