# Everything runs from .venv, which is made on first use.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
ROUNDS ?= 20
DATA ?= mnist
SEEDS ?= 0,1,2

.PHONY: install demo test lint bench chaos paper clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --editable '.[test,all]'
	touch $@

demo: install
	$(RUN)/kdistill train-teacher
	$(RUN)/kdistill soften --temperature 20
	$(RUN)/kdistill train-student --alpha 0.1
	$(RUN)/kdistill plot
	$(RUN)/kdistill evaluate
	@echo "pictures: workspace/plots/learning-curves.png, workspace/plots/dark-knowledge.png"

test: install
	$(RUN)/python -m pytest --numprocesses 2 --dist worksteal

lint: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

bench: install
	$(RUN)/python tests/programs/bench.py

chaos: install
	$(RUN)/python tests/programs/chaos.py --rounds $(ROUNDS)

paper: install
	$(RUN)/python tests/programs/paper.py --data $(DATA) --seeds $(SEEDS) $(if $(QUICK),--quick --place .paper/quick)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
