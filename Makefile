# `make demo` and `make test` each set up everything they need on a fresh Linux machine with Python 3.10 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo test test-all test-timm test-mmcv bench-dense lint clean help

help:
	@echo "make demo      train a small detector on digit scenes, draw, export and check it (6 to 7 minutes on two cores)"
	@echo "make test      the quick tests"
	@echo "make test-all  all tests, the long ones too"
	@echo "make test-timm timm's own model tests over our models"
	@echo "make test-mmcv mmcv's own operator tests over our stand-in"
	@echo "make bench-dense  micro backbones at equal budget on digit scenes; MODELS= TASKS= SEEDS= JOBS= choose (hours for all)"

$(STAMP): setup.py requirements/pinned.txt tools/setup.sh
	PYTHON="$(PYTHON)" tools/setup.sh $(VENV)
	@touch $@

demo: $(STAMP)
	$(BIN)/vitzoo demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest

test-timm: $(STAMP)
	$(BIN)/python tools/test_timm.py

test-mmcv: $(STAMP)
	$(BIN)/python tools/test_mmcv_ops.py

bench-dense: $(STAMP)
	$(BIN)/python -m benchmarks.dense $(if $(MODELS),--models $(MODELS)) $(if $(TASKS),--tasks $(TASKS)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(JOBS),--jobs $(JOBS))

lint: $(STAMP)
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info
