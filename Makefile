# make demo | test | slow | lint | types | check | bench | torture | gpu; each makes .venv and installs what it needs first.
# make gpu DATA=cifar10.npz: CIFAR-10 from a file instead of a download; OUT=folder: where the results go.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow lint types check bench torture gpu clean

demo: $(READY)
	$(BIN)/grokkit demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

bench: $(READY)
	$(BIN)/python -m bench

torture: $(READY)
	$(BIN)/python -m bench.torture

gpu: $(READY)
	$(BIN)/python -m bench.gpu $(if $(DATA),--data $(DATA)) $(if $(OUT),--out $(OUT))

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
