"""Metrics of predictions: NumPy on logits (rows, classes) and labels (rows,).

A metric with a value per row returns them all; the mean is the caller's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.settings import TEMPERATURES

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def log_softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return log(softmax(logits / temperature)), (..., classes)."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True)))


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probabilities of logits / temperature, (..., classes)."""
    return np.asarray(np.exp(log_softmax(logits, temperature)))


def errors(logits: Floats, labels: Labels) -> int:
    """Return the number of rows whose most likely class is not the label."""
    return int((logits.argmax(axis=1) != labels).sum())


def negative_log_likelihood(logits: Floats, labels: Labels) -> NDArray[np.float64]:
    """Return -log p(label) of each row in nats, (rows,)."""
    return np.asarray(-log_softmax(logits)[np.arange(len(labels)), labels])


def brier_score(logits: Floats, labels: Labels) -> NDArray[np.float64]:
    """Return the squared distance of probabilities and one-hot label, summed over classes, (rows,): from 0 to 2.

    Source: Brier (1950).
    """
    distance = softmax(logits)
    distance[np.arange(len(labels)), labels] -= 1.0
    return np.asarray((distance**2).sum(axis=1))


def confidence(logits: Floats) -> NDArray[np.float64]:
    """Return the largest probability of each row, (rows,)."""
    return np.asarray(np.exp(log_softmax(logits).max(axis=1)))


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width (Guo et al. 2017, eq. 3).

    Args:
        confidence: (rows,).
        correct: whether the most likely class is the label, (rows,).
        bins: number of bins.
    """
    place = _bin(confidence, bins)
    gaps = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(correct))


def reliability(
    confidence: Floats, correct: NDArray[np.bool_], bins: int = 15
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return for each bin of `expected_calibration_error` its rows, mean confidence and accuracy, each (bins,).

    The means of an empty bin are 0.
    """
    place = _bin(confidence, bins)
    rows, *sums = (np.bincount(place, weights, bins) for weights in (None, confidence, correct))
    means = [np.divide(total, rows, out=np.zeros(bins), where=rows > 0) for total in sums]
    return rows, means[0], means[1]


def _bin(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """Return the number of each row's bin, (rows,); a bin contains its upper end."""
    return np.asarray(np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1))


def agreement(logits: Floats, others: Floats) -> NDArray[np.bool_]:
    """Return whether both have the same most likely class, (rows,)."""
    return np.asarray(logits.argmax(axis=1) == others.argmax(axis=1))


def kl_divergence(teacher_logits: Floats, student_logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return KL(softmax(teacher / T) || softmax(student / T)) of each row in nats, (rows,)."""
    teacher, student = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    return np.asarray((np.exp(teacher) * (teacher - student)).sum(axis=1))


def fitted_temperature(logits: Floats, labels: Labels) -> float:
    """Return the T with the lowest NLL of softmax(logits / T): temperature scaling (Guo et al. 2017).

    The NLL is convex in 1 / T, and its slope is the mean of E[logit] minus the label's logit. Bisection of log T finds
    where the slope is 0. T stays within `settings.TEMPERATURES`; it is the lowest one if all rows are correct.

    Args:
        logits: (rows, classes).
        labels: (rows,).
    """
    of_labels = logits.astype(np.float64)[np.arange(len(labels)), labels]
    low, high = np.log(TEMPERATURES)
    for _ in range(60):
        middle = float(low + high) / 2
        expected = (softmax(logits, float(np.exp(middle))) * logits).sum(axis=1)
        low, high = (low, middle) if (expected - of_labels).mean() < 0 else (middle, high)
    return float(np.exp((low + high) / 2))
