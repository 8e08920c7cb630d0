"""Outputs of teachers: logits, or probabilities that are converted to logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data import Dataset
from kdistill.errors import KdistillError
from kdistill.settings import Soften

Floats = NDArray[np.float32]

PROBED_ROWS = 256  # first rows, which decide whether a teacher gives probabilities
SUM_TOLERANCE = 1e-2  # Probabilities in half precision do not sum to exactly 1.
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


def are_probabilities(outputs: NDArray[np.floating[Any]]) -> bool:
    """Return whether every row is non-negative and sums to 1."""
    return bool((outputs >= 0).all() and np.allclose(outputs.sum(axis=1, dtype=np.float64), 1.0, atol=SUM_TOLERANCE))


def gives_probabilities(outputs: Floats, settings: Soften, source: object) -> bool:
    """Decide from a teacher's outputs for the first rows whether it gives probabilities; `--teacher-output` overrides."""
    found = are_probabilities(outputs)
    if settings.teacher_output == "probabilities" and not found:
        raise KdistillError(f"{source} gives rows that are not probabilities; pass --teacher-output logits")
    return found and settings.teacher_output != "logits"


def to_logits(probabilities: Floats, zeros: ZeroCount, source: object) -> Floats:
    """Return the centered logarithms of probabilities (rows, classes); `zeros` counts those that are 0."""
    if not are_probabilities(probabilities):
        raise KdistillError(
            f"{source} gives rows that are not probabilities after rows that are; pass --teacher-output logits"
        )
    zero = probabilities == 0
    zeros.count += int(zero.sum())
    zeros.total += zero.size
    smallest = np.where(zero, np.inf, probabilities).min(axis=1, keepdims=True)
    floor = np.minimum(smallest, ZERO_MASS / probabilities.shape[1])
    return centered(np.log(np.where(zero, floor, probabilities).astype(np.float32)))


def centered(logits: NDArray[np.floating[Any]]) -> Floats:
    """Shift each row of logits to a mean of 0, which leaves the probabilities as they are.

    Logarithms of probabilities are far below 0, by T * log(classes) or more, and a student that matches logits would learn
    little else.
    """
    return np.asarray(logits - logits.mean(axis=-1, keepdims=True), np.float32)
