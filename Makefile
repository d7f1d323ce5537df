# `make demo` and `make test` set up what they need in .venv; a second call finds it there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/python tools/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest --durations=10

# A training that is killed over and over; what it prints are its lives.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -rP --show-capture=stdout

# What training wrote under output/ stays, apart from the demo's.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache output/demo

$(STAMP): setup.py $(wildcard packaging/detectron2/*.py packaging/detectron2/*.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	    { echo "Python 3.10 or later is needed: call make with PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "This Python cannot make virtual environments: install its venv module" \
	    "(python3-venv on Debian and Ubuntu), or call make with PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install ./packaging/detectron2 -e '.[test]'
	touch $@
