"""Finding a task by its name, or by the labels of a dataset."""

from __future__ import annotations

import functools
import importlib

from kdistill.settings import CLASSIFICATION, TASKS
from kdistill.tasks.labels import RawLabels
from kdistill.tasks.task import Task


@functools.cache
def get(name: str) -> Task:
    """Return the task with a name of `settings.TASKS`."""
    task: Task = importlib.import_module(f"kdistill.tasks.{TASKS[name].module}").TASK
    return task


def choose(labels: RawLabels) -> Task:
    """Return the task that labels belong to if `--task` is not given: the first that fits, else classification."""
    return next((task for task in map(get, TASKS) if task.fits(labels)), get(CLASSIFICATION))
