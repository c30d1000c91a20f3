# Everything here works on a fresh machine with Python 3.11 and make: the environment is made on first use.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: setup demo test check format test-nightly bench clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

RECIPE ?= demo
demo: $(INSTALLED)
	$(BIN)/exfuse demo --recipe $(RECIPE)

# A process for each core, one thread each: the threads of several processes would wait for one another. The folders with
# the longest tests come first by name, so the files are taken in that order.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: check
	$(PYTEST) --cov --cov-report=term

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-nightly: $(INSTALLED)
	$(PYTEST) -m nightly --durations=0 --durations-min=1

# The peers are measured in an environment of their own: they need torchvision, whose wheel does not fit a CPU torch.
BENCH := benchmarks/.venv
$(BENCH)/installed: benchmarks/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[onnx,openvino]'
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement benchmarks/requirements.txt
	touch $@

# With DATA, a data set in CamVid's layout, what reads data is measured, too; with MODEL, trained on it, what labels it.
bench: $(BENCH)/installed
	$(BENCH)/bin/python benchmarks/network.py
	$(BENCH)/bin/python benchmarks/rearrangement.py
	$(BENCH)/bin/python benchmarks/engines.py
	$(BENCH)/bin/python benchmarks/peers.py
	$(BENCH)/bin/python benchmarks/scaling.py
	$(BENCH)/bin/python benchmarks/postprocessing.py
ifneq ($(DATA),)
	$(BENCH)/bin/python benchmarks/input_side.py $(DATA)
	$(BENCH)/bin/python benchmarks/training.py $(DATA)
ifneq ($(MODEL),)
	$(BENCH)/bin/python benchmarks/accuracy.py $(MODEL) $(DATA) $(EXPORTS)
	$(BENCH)/bin/python benchmarks/tiles.py $(MODEL) $(DATA)
endif
endif

clean:
	rm -rf .venv benchmarks/.venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage
