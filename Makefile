# A fresh machine gets exactly what CI got: virtual environments pinned by constraints.txt, one for
# the work and, as their libraries are no dependency of ours, one each for parity, aot and docs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PARITY ?= .venv-parity
AOT ?= .venv-aot
DOCS ?= .venv-docs
NEWEST ?= .venv-newest
NEWEST_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python \
	/usr/local/bin/python3.12 /usr/bin/python3.12) $(PYTHON))

TEST = $(BIN)/python -m pytest -q -n 2
RERANK := tests/zoo/rerank tests/train/test_rerank.py
# Tables that must be equal to the bit, whatever their size: so they are as users compile them.
OPTIMISED := tests/zoo/features/test_embeddings.py

.PHONY: demo test kernels rerank contract parity aot notebooks docs lint format results clean \
	environments times mutants

# One cache of compiled programs for all gates; tests/conftest.py names the same.
notebooks: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.pytest_cache/jax

# Models' tests compile far more than they compute: machine code without LLVM's optimisations, and
# without the emitters that the newest releases always use, is ready in half the time. Kernels are
# tested as users compile them.
QUICK := --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0
test rerank contract parity: export XLA_FLAGS := $(QUICK) --xla_cpu_use_fusion_emitters=false

demo: $(READY)  ## mlp against din on the built-in world, in two minutes
	$(BIN)/recjax demo

test: $(READY)  ## every test but the gates below; needs no accelerator and no network
	$(TEST) --dist loadgroup --ignore tests/zoo/test_contract.py --ignore tests/kernels \
		$(RERANK:%=--ignore %) $(OPTIMISED:%=--ignore %)

kernels: $(READY)  ## every op against float64, every kernel that runs without its device
	$(TEST) tests/kernels $(OPTIMISED)

rerank: $(READY)  ## evaluators, generators, LAST
	$(TEST) $(RERANK)

contract: $(READY) $(NEWEST)/.ready  ## what every model promises, on the oldest Python and the newest
	$(TEST) --dist loadgroup tests/zoo/test_contract.py
	XLA_FLAGS="$(QUICK)" $(NEWEST)/bin/python -m pytest -q -n 2 --dist loadgroup \
		tests/zoo/test_contract.py -m "not variant"

# On Linux, PyPI's torch brings CUDA along: PIP_EXTRA_INDEX_URL may name an index of CPU builds.
parity: $(PARITY)/.ready  ## our models against three libraries for PyTorch, weights mapped
	$(PARITY)/bin/python -m pytest -q -n 2 tests/parity

# jaxtyping's import hook would wrap the kernels, whose source Triton reads.
aot: PYTEST := $(AOT)/bin/python -m pytest -q -n 2 -o addopts=--import-mode=importlib
aot: $(AOT)/.ready  ## kernels in their interpreter, and compiled for an H100 and a TPU that are not here
	TRITON_INTERPRET=1 $(PYTEST) tests/aot/interpreted
	$(PYTEST) tests/aot --ignore tests/aot/interpreted

notebooks: $(READY)  ## every notebook from its first cell to its last; the files stay as they are
	printf '%s\n' colab/*.ipynb | xargs -P 2 -n 1 $(BIN)/jupyter execute

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS)/.ready  ## the site, into site/; warnings are errors
	$(DOCS)/bin/mkdocs build --strict

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

environments: $(READY) $(NEWEST)/.ready $(PARITY)/.ready $(AOT)/.ready $(DOCS)/.ready  ## all; with -j2 at once

times:  ## CPU seconds of the last .ci/run by gate and file of tests, the dearest first
	@$(BIN)/python tests/seconds.py .pytest_cache/seconds

mutants: $(READY)  ## faults made on purpose, which the tests must notice (by hand; half an hour)
	$(BIN)/python tests/mutants.py

format: $(READY)  ## put the tree into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: $(READY) $(PARITY)/.ready  ## the figures of all pages, made anew (some hours)
	$(BIN)/recjax bench accuracy --out bench/results/accuracy
	$(BIN)/recjax bench worlds --out bench/results/worlds
	$(BIN)/recjax bench pipeline --out bench/results/pipeline
	$(BIN)/recjax bench kernels --out bench/results/kernels
	$(BIN)/recjax bench fields --out bench/results/fields
	$(BIN)/recjax bench search --only "MovieLens 100K" --out bench/results/search/movielens-100k
	$(BIN)/recjax bench search --only "Amazon Beauty" --out bench/results/search/beauty
	$(BIN)/recjax bench search --only market --out bench/results/search/market
	$(BIN)/recjax bench search --only "market, one taste" --out bench/results/search/one-taste
	for case in strong weak drift preferences cost; do \
		$(BIN)/recjax bench last --only $$case --out bench/results/last/$$case; done
	$(BIN)/recjax bench last --only "no context" --out bench/results/last/no-context
	$(PARITY)/bin/python -m recjax.bench training --out bench/results/training
	$(BIN)/python -m recjax.bench.pages
	$(BIN)/jupyter execute --inplace colab/*.ipynb

$(VENV)/.ready: EXTRA := dev
$(PARITY)/.ready: EXTRA := parity
$(AOT)/.ready: EXTRA := aot
$(VENV)/.ready $(PARITY)/.ready $(AOT)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(call install,--constraint constraints.txt,$(EXTRA))
	touch $@

# The newest Python that we claim, with the newest releases of everything; where this machine has no
# such Python, the one it has.
$(NEWEST)/.ready: pyproject.toml
	$(NEWEST_PYTHON) -m venv $(@D)
	$(call install,,test)
	touch $@

# The reference is read from the sources: the extra's own packages are enough, without JAX.
EXTRA_OF_DOCS := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["optional-dependencies"]["docs"], sep="\n")
$(DOCS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -c '$(EXTRA_OF_DOCS)' > $(@D)/requirements.txt
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt \
		--requirement $(@D)/requirements.txt
	touch $@

# Several environments may be made at once: each keeps setuptools' notes on us to itself.
define install
$(@D)/bin/python -m pip install --quiet --upgrade pip
printf '[egg_info]\negg_base = %s\n' $(abspath $(@D)) > $(@D)/setuptools.cfg
DIST_EXTRA_CONFIG=$(abspath $(@D))/setuptools.cfg \
	$(@D)/bin/python -m pip install --quiet $(1) --editable '.[$(2)]'
endef

clean:
	rm -rf $(VENV) $(PARITY) $(AOT) $(DOCS) $(NEWEST) build runs site .pytest_cache .ruff_cache
