"""How good predictions are: NumPy on arrays of logits (rows, classes) and labels (rows,).

One value a row, where a metric has one; the mean over rows is the caller's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.settings import TEMPERATURES

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def log_softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Log-probabilities of softmax(logits / temperature), (..., classes)."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True)))


def errors(logits: Floats, labels: Labels) -> int:
    """How many rows have their largest logit elsewhere than at the label."""
    return int((logits.argmax(axis=1) != labels).sum())


def negative_log_likelihood(logits: Floats, labels: Labels) -> NDArray[np.float64]:
    """-log p(label), (rows,) in nats."""
    return np.asarray(-log_softmax(logits)[np.arange(len(labels)), labels])


def brier_score(logits: Floats, labels: Labels) -> NDArray[np.float64]:
    """Squared distance of the probabilities from the one-hot label, summed over classes: 0 to 2 (Brier 1950); (rows,)."""
    distance = np.exp(log_softmax(logits))
    distance[np.arange(len(labels)), labels] -= 1.0
    return np.asarray((distance**2).sum(axis=1))


def confidence(logits: Floats) -> NDArray[np.float64]:
    """The largest probability of each row, (rows,)."""
    return np.asarray(np.exp(log_softmax(logits).max(axis=1)))


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence (Guo et al. 2017, eq. 3).

    Args:
        confidence: (rows,).
        right: (rows,), whether the most likely class is the label.
        bins: how many.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def agreement(logits: Floats, others: Floats) -> NDArray[np.bool_]:
    """Whether both have the same most likely class, (rows,)."""
    return np.asarray(logits.argmax(axis=1) == others.argmax(axis=1))


def kl_divergence(teacher_logits: Floats, student_logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """KL(softmax(teacher / T) || softmax(student / T)), (rows,) in nats."""
    teacher, student = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    return np.asarray((np.exp(teacher) * (teacher - student)).sum(axis=1))


def fitted_temperature(logits: Floats, labels: Labels) -> float:
    """The T for which softmax(logits / T) has the lowest NLL on some rows (Guo et al. 2017, temperature scaling).

    The NLL is convex in 1 / T, and its slope is the mean of E[logit] - logit of the label: halving the range of log T
    finds where that is 0. T is within `settings.TEMPERATURES`, at an end where the rows know none: with all of them
    right, the lower T the better.

    Args:
        logits: (rows, classes).
        labels: (rows,).
    """
    own = logits.astype(np.float64)[np.arange(len(labels)), labels]
    low, high = np.log(TEMPERATURES)
    for _ in range(60):
        middle = float(low + high) / 2
        expected = (np.exp(log_softmax(logits, float(np.exp(middle)))) * logits).sum(axis=1)
        low, high = (low, middle) if (expected - own).mean() < 0 else (middle, high)
    return float(np.exp((low + high) / 2))
