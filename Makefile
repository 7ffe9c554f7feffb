# `make demo`, `make test` and `make docs` each set up everything they need on a fresh Linux machine with Python 3.10 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DOCS := .venv-docs
# two processes of one thread each (tests/conftest.py); what one of them has left to do, the other takes over
PYTEST = $(BIN)/python -m pytest -n $(or $(JOBS),2) --dist worksteal

.PHONY: demo demo-quick test test-all test-timm test-mmcv test-clients bench-dense bench-reduction bench-latency docs lint clean help

help:
	@echo "make demo      train a small detector on digit scenes, draw, export and check it (5 to 7 minutes on two cores)"
	@echo "make demo-quick  the same on few scenes and iterations: a first picture in a minute, of a detector that knows little yet"
	@echo "make test      the quick tests and ruff (about 7 minutes on two cores); JOBS= processes, 2 of themselves"
	@echo "make test-all  all tests, the long ones too, and timm's own over the micro models (about two hours on two cores)"
	@echo "make test-timm timm's own model tests over all our models"
	@echo "make test-mmcv mmcv's own operator tests over our stand-in"
	@echo "make test-clients  smp, transformers, peft and others over our models; TIMM_SCRIPTS= a folder with timm's train.py for its scripts too"
	@echo "make docs      the pages as a site in runs/docs (needs no PyTorch)"
	@echo "make bench-dense  micro backbones at equal budget on digit scenes; MODELS= TASKS= SEEDS= JOBS= choose (hours for all)"
	@echo "make bench-reduction  accuracy against multiply-adds of reduced tokens on digit crops; METHODS= SEEDS= choose"
	@echo "make bench-latency  latency of our models and timm's on this CPU, and its pages; MODELS= chooses (hours for all)"

$(STAMP): setup.py requirements/pinned.txt tools/setup.sh
	PYTHON="$(PYTHON)" tools/setup.sh $(VENV)
	@touch $@

demo: $(STAMP)
	$(BIN)/vitzoo demo --out runs/demo

demo-quick: $(STAMP)
	$(BIN)/vitzoo demo --out runs/demo-quick --data data/digit_scenes_micro --preset micro --iterations 40

test: lint
	$(PYTEST) -m "not slow"

test-all: lint $(DOCS)/.ready
	$(PYTEST)
	$(BIN)/python tools/test_timm.py --models '*_micro'

test-timm: $(STAMP)
	$(BIN)/python tools/test_timm.py

test-mmcv: $(STAMP)
	$(BIN)/python tools/test_mmcv_ops.py

$(VENV)/.clients: $(STAMP) requirements/clients.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/clients.txt
	@touch $@

test-clients: $(VENV)/.clients
	$(PYTEST) tests/clients

bench-dense: $(STAMP)
	$(BIN)/python -m benchmarks.dense $(if $(MODELS),--models $(MODELS)) $(if $(TASKS),--tasks $(TASKS)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(JOBS),--jobs $(JOBS))

bench-reduction: $(STAMP)
	$(BIN)/python -m benchmarks.reduction $(if $(METHODS),--methods $(METHODS)) $(if $(SEEDS),--seeds $(SEEDS))

bench-latency: $(STAMP)
	$(BIN)/python -m benchmarks.latency $(if $(MODELS),--models $(MODELS))
	$(BIN)/python -m benchmarks.latency.report
	$(BIN)/python -m benchmarks.latency.choose

docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --site-dir runs/docs
	@echo "runs/docs/index.html is the site; with search: $(DOCS)/bin/python -m http.server --directory runs/docs"

$(DOCS)/.ready: requirements/docs.txt tools/setup.sh
	PYTHON="$(PYTHON)" tools/setup.sh $(DOCS) requirements/docs.txt
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) $(DOCS) build *.egg-info
