"""How good predictions are: NumPy on arrays of logits (rows, classes) and labels (rows,); all results are floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def log_softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Log-probabilities of softmax(logits / temperature), (rows, classes)."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def errors(logits: Floats, labels: Labels) -> int:
    """How many rows have their largest logit elsewhere than at the label."""
    return int((logits.argmax(axis=1) != labels).sum())


def negative_log_likelihood(logits: Floats, labels: Labels) -> float:
    """Mean of -log p(label), in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def brier_score(logits: Floats, labels: Labels) -> float:
    """Mean squared distance of the probabilities from the one-hot label, summed over classes: 0 to 2 (Brier 1950)."""
    distance = np.exp(log_softmax(logits))
    distance[np.arange(len(labels)), labels] -= 1.0
    return float((distance**2).sum(axis=1).mean())


def expected_calibration_error(logits: Floats, labels: Labels, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence (Guo et al. 2017, eq. 3)."""
    confidence = np.exp(log_softmax(logits).max(axis=1))
    right = logits.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def agreement(logits: Floats, others: Floats) -> float:
    """Share of rows in which both have the same most likely class."""
    return float((logits.argmax(axis=1) == others.argmax(axis=1)).mean())


def kl_divergence(teacher_logits: Floats, student_logits: Floats, temperature: float = 1.0) -> float:
    """Mean KL(softmax(teacher / T) || softmax(student / T)), in nats."""
    teacher, student = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    return float((np.exp(teacher) * (teacher - student)).sum(axis=1).mean())
