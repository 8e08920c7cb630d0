# Everything runs from .venv, which is created on first use.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
TEST := $(RUN)/python -m pytest --numprocesses 2 --dist worksteal
ROUNDS ?= 20
SEEDS ?= 0,1,2

.DEFAULT_GOAL := help
.PHONY: help install demo lint fast check test reference bench bench-gpu chaos paper cifar10 tasks lowest clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/installed  ## create .venv with kdistill, its extras and the development tools

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --editable '.[test,all]'
	touch $@

demo: install  ## distill a student that never sees a 3, beside one from hard labels
	$(RUN)/kdistill train-teacher
	$(RUN)/kdistill soften --temperature 20 --omit-class 3
	$(RUN)/kdistill train-student --name distilled --alpha 0
	$(RUN)/kdistill train-student --name hard-labels --alpha 1 --omit-class 3
	$(RUN)/kdistill plot
	$(RUN)/kdistill evaluate
	@echo "Neither student was trained on a 3, but the distilled one learned about it from the teacher."
	@echo "Pictures: workspace/plots/learning-curves.png, workspace/plots/dark-knowledge.png"

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

bench: install  ## measure the speed against Keras, and PyTorch if it is installed
	$(RUN)/python tests/programs/bench

bench-gpu: install  ## the same on a GPU
	$(RUN)/python tests/programs/bench/gpu.py

chaos: install  ## kill stages at random times, ROUNDS=20 times
	$(RUN)/python tests/programs/chaos.py --rounds $(ROUNDS)

paper: install  ## reproduce the paper's results in .paper; DATA=mnist.npz SEEDS=0,1,2 QUICK=1
	$(RUN)/python tests/programs/paper.py --seeds $(SEEDS) $(if $(DATA),--data $(DATA)) $(if $(QUICK),--quick --place .paper/quick)

cifar10: install  ## distill on CIFAR-10 in .cifar10; DATA=DIRECTORY SEEDS=0,1,2 TEACHER_EPOCHS=40 STUDENT_EPOCHS=30
	$(RUN)/python tests/programs/cifar10.py --data $(DATA) --seeds $(SEEDS) $(if $(TEACHER_EPOCHS),--teacher-epochs $(TEACHER_EPOCHS)) \
		$(if $(STUDENT_EPOCHS),--student-epochs $(STUDENT_EPOCHS))

tasks: install  ## distill on a dataset of each task in .tasks; DATA=DIRECTORY SEEDS=0,1,2
	$(RUN)/python tests/programs/tasks.py --data $(DATA) --seeds $(SEEDS)

lowest: install  ## replace the dependencies in .venv by the lowest supported versions
	sed -n 's/^    "\([a-z0-9-]*\)>=\([0-9.]*\)",$$/\1==\2.*/p' pyproject.toml | xargs $(RUN)/python -m pip install --quiet

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
