"""Outputs of teachers: logits, or probabilities that are converted to logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdistill.data import Dataset
from kdistill.errors import KdistillError
from kdistill.tasks import Task

Floats = NDArray[np.float32]

PROBED_ROWS = 256  # first rows, which decide whether a teacher gives probabilities
# A probability of exactly 0 has no logarithm. It means "too small to express": below 1 / trees for a random forest, below
# 3e-8 in float16. Replacing it with a tiny number, e.g. the smallest float32, would put its logit 87 below the largest one,
# and a softmax at T = 20 would show little else. So the zeros of a row get this probability in total, which is small
# enough to leave the others as they are, and no zero gets more than the smallest other probability of its row.
ZERO_MASS = 1e-3


@dataclass
class ZeroCount:
    """Number of probabilities that were exactly 0: `count` of `total`."""

    count: int = 0
    total: int = 0

    def add(self, other: ZeroCount) -> None:
        self.count, self.total = self.count + other.count, self.total + other.total

    def take(self) -> ZeroCount:
        """Return what was counted, and count from 0 again."""
        taken, self.count, self.total = ZeroCount(self.count, self.total), 0, 0
        return taken

    def __str__(self) -> str:
        return (
            f"{self.count:,} of {self.total:,} probabilities ({self.count / self.total:.1%}) are exactly 0; each counts as "
            f"{ZERO_MASS:g} / classes, or as the smallest other probability of its row if that is less. If the teacher "
            "has logits, use those instead"
        )


def check_classes(classes: int, source: object, dataset: Dataset) -> None:
    """Refuse outputs (rows, classes) of which there are more or fewer than the dataset needs."""
    if dataset.outputs not in (None, classes):
        raise KdistillError(f"{source} gives {classes} outputs per row (expected {dataset.outputs}, as {dataset.name})")


def gives_probabilities(outputs: Floats, teacher_output: str, source: object, task: Task) -> bool:
    """Decide from a teacher's outputs for the first rows whether it gives probabilities; `teacher_output` overrides."""
    found = task.are_probabilities(outputs)
    if teacher_output == "probabilities" and not found:
        raise KdistillError(f"{source} gives rows that are not probabilities; pass --teacher-output logits")
    return found and teacher_output != "logits"


def to_logits(probabilities: Floats, zeros: ZeroCount, source: object, task: Task) -> Floats:
    """Return the logits of probabilities (rows, classes); `zeros` counts those that are 0."""
    if not task.are_probabilities(probabilities):
        raise KdistillError(
            f"{source} gives rows that are not probabilities after rows that are; pass --teacher-output logits"
        )
    zeros.count += int((probabilities == 0).sum())
    zeros.total += probabilities.size
    return task.from_probabilities(probabilities, ZERO_MASS)
