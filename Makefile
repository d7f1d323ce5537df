# `make demo`, `make cards`, `make test` and `make lint` set up what they need in .venv; a second call finds it.
PYTHON ?= python3
# Processes that run the tests; JOBS=0 runs them in one, as a debugger needs it.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip

.PHONY: all demo cards bccd test test-slow lint clean
.DELETE_ON_ERROR:

all: $(STAMP)

demo: $(STAMP)
	$(BIN)/python tools/demo.py

# The demo on photographs. Each says which git command brings them, and trains its teacher first.
cards: $(STAMP)
	$(BIN)/python tools/demo.py --data cards

bccd: $(STAMP)
	$(BIN)/python tools/demo.py --data bccd

# The tests of a file stay in one process: they share trained detectors.
test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations=10

# A training that is killed and resumed repeatedly, which prints each start; and the notebook.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -rP --show-capture=stdout

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/black --check --quiet . || { echo "to format: $(BIN)/black ." >&2; exit 1; }
	$(BIN)/mypy

# What training wrote under output/ stays, apart from the demo's.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    output/demo output/demo_cards output/demo_bccd

# opencv-python needs libGL, which servers and containers often lack. There its headless build
# replaces it. It never stands beside it: both write the folder cv2. `pip check` then reports that
# d2kd requires opencv-python, and only that; a later `pip install` of d2kd brings opencv-python back,
# which is why the headless build is removed before this one.
HEADLESS := opencv-python-headless
$(STAMP): pyproject.toml setup.py $(wildcard packaging/detectron2/*.py packaging/detectron2/*.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	    { echo "Python 3.10 or later is needed: call make with PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "This Python cannot make virtual environments: install its venv module" \
	    "(python3-venv on Debian and Ubuntu), or call make with PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if $(PIP) show --quiet $(HEADLESS) 2>/dev/null; then \
	    $(PIP) uninstall --quiet --yes $(HEADLESS) opencv-python; fi
	$(PIP) install ./packaging/detectron2 -e '.[test,lint]'
	@$(BIN)/python -c 'import cv2' 2>$(VENV)/cv2.log || \
	    { tail -n 1 $(VENV)/cv2.log; \
	    echo "OpenCV cannot be loaded here: replacing opencv-python by $(HEADLESS)"; \
	    $(PIP) uninstall --quiet --yes opencv-python && $(PIP) install $(HEADLESS) && \
	    $(BIN)/python -c 'import cv2'; }
	touch $@
