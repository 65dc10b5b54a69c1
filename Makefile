# A fresh machine gets exactly what CI got: one virtual environment, pinned by constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format results clean

demo: $(READY)  ## mlp against din on the built-in world, in minutes
	$(BIN)/recjax demo

test: $(READY)  ## every test; needs no accelerator and no network
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(READY)  ## put the tree into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: $(READY)  ## the tables of the README, made anew (half an hour)
	$(BIN)/recjax bench accuracy --only market --only "market, control" --only "MovieLens 100K" \
		--out bench/results/accuracy
	$(BIN)/recjax bench pipeline --out bench/results/pipeline
	$(BIN)/python -m recjax.bench.readme

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build runs .pytest_cache .ruff_cache
