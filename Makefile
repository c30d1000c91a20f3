# Everything here works on a fresh machine with Python 3.11 and make: the environment is made on first use.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: setup lock demo test test-fast check format test-nightly test-timm coverage bench clean

setup: $(INSTALLED)

# Each file is held against its hash. First torch's build without CUDA, where an index or PIP_FIND_LINKS has it: it would
# not be chosen among others, as pip prefers files whose hash the index says. The last step adds this package and what
# other builds of torch want besides.
CPU_TORCH := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
$(INSTALLED): pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -m venv .venv
	@sed -n 's/^torch==.*/&+cpu --hash=sha256:$(CPU_TORCH)/p' constraints.txt | $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --no-deps --require-hashes --requirement /dev/stdin 2>/dev/null || \
		echo "no torch without CUDA found; taking PyPI's"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

# The hashes of all files that PyPI has of the versions in constraints.txt; that of torch's wheel without CUDA, which PyPI
# does not have, stands above: `pip hash FILE` says it.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	build/lock/bin/uv pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade \
		--output-file requirements.lock constraints.txt

RECIPE ?= demo
demo: $(INSTALLED)
	$(BIN)/exfuse demo --recipe $(RECIPE)

# A process for each core, one thread each: the threads of several processes would wait for one another. The folders with
# the longest tests come first by name, so the files are taken in that order.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: check
	$(PYTEST)

# What neither trains nor runs a whole command: for while you work.
test-fast: $(INSTALLED)
	$(PYTEST) tests/unit tests/parity tests/architecture

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-nightly: $(INSTALLED)
	$(PYTEST) -m nightly --durations=0 --durations-min=1

# Apart from `make test`, which it makes take half as long again: what traces a network is all Python.
coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report=term

# The peers are measured in an environment of their own: they need torchvision, whose wheel does not fit a CPU torch.
BENCH := benchmarks/.venv
$(BENCH)/installed: benchmarks/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[onnx,openvino]'
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement benchmarks/requirements.txt
	touch $@

# timm's backbones with the library itself; it needs torchvision, so it is in this environment alone.
test-timm: $(BENCH)/installed
	PYTHONPATH=benchmarks OMP_NUM_THREADS=1 $(BENCH)/bin/python -m pytest tests/integration/test_timm.py

# With DATA, a data set in CamVid's layout, what reads data is measured, too; with MODEL, trained on it, what labels it.
BENCHMARKS := network rearrangement engines peers scaling postprocessing
BENCHMARKS_OF_DATA := $(if $(DATA),input_side training)

# One that finds the machine too busy keeps none of the others from being run.
bench: $(BENCH)/installed
	@failed=; \
	run() { $(BENCH)/bin/python "benchmarks/$$@" || failed="$$failed $$1"; }; \
	for name in $(BENCHMARKS); do run $$name.py; done; \
	for name in $(BENCHMARKS_OF_DATA); do run $$name.py $(DATA); done; \
	$(if $(and $(DATA),$(MODEL)),run accuracy.py $(MODEL) $(DATA) $(EXPORTS); run tiles.py $(MODEL) $(DATA);) \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean:
	rm -rf .venv benchmarks/.venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage
