"""Metrics of predictions: NumPy on outputs (rows, outputs) and labels.

Labels are (rows,) class numbers where nothing else is said. A metric with a value per row returns them all; the mean is the
caller's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.settings import TEMPERATURES

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

MOST_NEIGHBORS = 5000  # rows among which nearest neighbors are compared


def log_softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return log(softmax(logits / temperature)), (..., classes)."""
    scaled = _scaled(logits, temperature)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True)))


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probabilities of logits / temperature, (..., classes)."""
    exponentials = np.exp(_scaled(logits, temperature))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return np.asarray(exponentials)


def _scaled(logits: Floats, temperature: float) -> NDArray[np.float64]:
    """Return logits / temperature minus their maximum, so that no exponential overflows."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    return scaled


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


def sigmoid(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probabilities 1 / (1 + exp(-logits / temperature)), of the shape of the logits."""
    return np.asarray((1 + np.tanh(logits.astype(np.float64) / (2 * temperature))) / 2)


def average_precisions(scores: Floats, labels: Labels, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the average precision of each class: the mean, over its positive rows, of the precision at their rank.

    Rows with equal scores share one rank, the last of them, as in scikit-learn's `average_precision_score`.

    Args:
        scores: (rows, classes).
        labels: (rows, classes), 1 for positive rows.
        known: (rows, classes), the labels that count.

    Returns:
        (classes,); NaN for classes without a positive row.
    """
    result = np.full(scores.shape[1], np.nan)
    for number in range(scores.shape[1]):
        counted = known[:, number]
        score, positive = scores[counted, number], labels[counted, number] == 1
        if not positive.any():
            continue
        order = np.argsort(-score, kind="stable")
        hits = np.cumsum(positive[order])
        last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # the last rank of each score
        gained = np.diff(hits[last], prepend=0)
        result[number] = float((gained * hits[last] / (last + 1)).sum() / hits[-1])
    return result


def f1_scores(predicted: NDArray[np.bool_], actual: NDArray[np.bool_], known: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the micro-averaged and the macro-averaged F1 score; all arguments are (rows, classes).

    F1 is 2 TP / (2 TP + FP + FN), of all classes together or of each class. It is 0 without a positive.
    """
    positives = (predicted & actual & known).sum(axis=0)
    wrong = ((predicted != actual) & known).sum(axis=0)
    micro = 2 * positives.sum() / max(1, 2 * positives.sum() + wrong.sum())
    return float(micro), float((2 * positives / np.maximum(1, 2 * positives + wrong)).mean())


def regression_measures(predicted: Floats, labels: Floats) -> dict[str, float | int]:
    """Return the mean absolute error, the root mean squared error and R^2; both arguments are (rows, numbers).

    R^2 is 1 - squared error / squared deviation from the mean, averaged over the numbers of a row. Labels that are NaN do
    not count.
    """
    error = predicted.astype(np.float64) - labels
    deviation = labels.astype(np.float64) - np.nanmean(labels, axis=0, dtype=np.float64)
    total = np.nansum(deviation**2, axis=0)
    explained = 1 - np.nansum(error**2, axis=0) / np.where(total > 0, total, 1)
    return {
        "mae": float(np.nanmean(np.abs(error))),
        "rmse": float(np.sqrt(np.nanmean(error**2))),
        "r2": float(explained.mean()),
    }


def cosine_similarity(vectors: Floats, others: Floats) -> NDArray[np.float64]:
    """Return the cosine of the angle between the vectors of each row, (rows,), from -1 to 1; both are (rows, width)."""
    return np.asarray((_unit(vectors) * _unit(others)).sum(axis=1))


def neighbor_agreement(vectors: Floats, others: Floats, most: int = MOST_NEIGHBORS) -> float:
    """Return the fraction of rows whose nearest other row, by cosine, is the same in both spaces.

    Args:
        vectors: (rows, width).
        others: (rows, width), of another width if need be.
        most: with more rows, this many are compared, evenly spaced.
    """
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(most, len(vectors))).astype(int))
    nearest = [_nearest(_unit(each[rows]).astype(np.float32)) for each in (vectors, others)]
    return float((nearest[0] == nearest[1]).mean())


def nearest(vectors: Floats, rows: NDArray[np.integer[Any]], count: int) -> NDArray[np.int64]:
    """Return the nearest other rows of some rows by cosine, (rows, count), the nearest first.

    Args:
        vectors: of all rows, (all rows, width).
        rows: the numbers of the rows, (rows,).
        count: of neighbors. There are fewer if there are not as many other rows.
    """
    unit = _unit(vectors)
    similarity = unit[rows] @ unit.T
    similarity[np.arange(len(rows)), rows] = -2  # a row is not its own neighbor
    return np.argsort(-similarity, axis=1, kind="stable")[:, : min(count, len(vectors) - 1)]


def _unit(vectors: Floats) -> NDArray[np.float64]:
    vectors = vectors.astype(np.float64)
    length = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    return np.asarray(vectors / np.where(length > 0, length, 1))


def _nearest(unit: Floats) -> NDArray[np.int64]:
    nearest = []
    for start in range(0, len(unit), 1000):
        similarity = unit[start : start + 1000] @ unit.T
        similarity[np.arange(len(similarity)), start + np.arange(len(similarity))] = -2  # a row is not its own neighbor
        nearest.append(similarity.argmax(axis=1))
    return np.concatenate(nearest)


def probe_accuracy(
    vectors: Floats, labels: Labels, test_vectors: Floats, test_labels: Labels, ridge: float = 1e-3
) -> float:
    """Return the test accuracy of a linear classifier on vectors: ridge regression of one-hot labels.

    Args:
        vectors: (rows, width), training rows. They are standardized.
        labels: (rows,), below 0 for rows without one, which do not count.
        test_vectors: (rows, width).
        test_labels: (rows,), as `labels`.
        ridge: weight of the squared coefficients, relative to the number of rows.
    """
    known, test_known = labels >= 0, test_labels >= 0
    mean, deviation = vectors[known].mean(axis=0), vectors[known].std(axis=0)
    scale = np.where(deviation > 0, deviation, 1)
    x, test_x = ((each - mean) / scale for each in (vectors[known], test_vectors[test_known]))
    one_hot = np.eye(int(max(labels.max(), test_labels.max())) + 1)[labels[known]]
    center = one_hot.mean(axis=0)
    covariance = x.T.astype(np.float64) @ x + ridge * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(covariance, x.T @ (one_hot - center))
    return float(((test_x @ weights + center).argmax(axis=1) == test_labels[test_known]).mean())
