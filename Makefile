# Everything runs from .venv, which is created on first use.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
TEST := $(RUN)/python -m pytest --numprocesses 2 --dist worksteal
ROUNDS ?= 20
SEEDS ?= 0,1,2

.DEFAULT_GOAL := help
.PHONY: help install demo lint fast check test reference bench chaos paper lowest clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/installed  ## create .venv with kdistill, its extras and the development tools

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --editable '.[test,all]'
	touch $@

demo: install  ## train a teacher and a student on the built-in digits
	$(RUN)/kdistill train-teacher
	$(RUN)/kdistill soften --temperature 20
	$(RUN)/kdistill train-student --alpha 0.1
	$(RUN)/kdistill plot
	$(RUN)/kdistill evaluate
	@echo "pictures: workspace/plots/learning-curves.png, workspace/plots/dark-knowledge.png"

lint: install  ## check style and types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

fast: install  ## the fast tests
	$(TEST) -m "not slow"

check: lint fast  ## lint and the fast tests: before each commit

test: install  ## all tests
	$(TEST)

reference: install  ## generate kdistill/guides/reference.md
	$(RUN)/python tests/programs/reference.py

bench: install  ## measure the speed against Keras
	$(RUN)/python tests/programs/bench.py

chaos: install  ## kill stages at random times, ROUNDS=20 times
	$(RUN)/python tests/programs/chaos.py --rounds $(ROUNDS)

paper: install  ## reproduce the paper's results in .paper; DATA=mnist.npz SEEDS=0,1,2 QUICK=1
	$(RUN)/python tests/programs/paper.py --seeds $(SEEDS) $(if $(DATA),--data $(DATA)) $(if $(QUICK),--quick --place .paper/quick)

lowest: install  ## replace the dependencies in .venv by the lowest supported versions
	sed -n 's/^    "\([a-z0-9-]*\)>=\([0-9.]*\)",$$/\1==\2.*/p' pyproject.toml | xargs $(RUN)/python -m pip install --quiet

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
