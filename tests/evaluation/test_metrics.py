"""Metrics on numbers small enough to do by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill.evaluation import metrics

LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5], [0.8, 0.1, 0.1]]))
LABELS = np.array([0, 1, 0, 2])


def test_negative_log_likelihood():
    assert metrics.negative_log_likelihood(LOGITS, LABELS).mean() == pytest.approx(
        -np.log([0.7, 0.6, 0.25, 0.1]).mean()
    )


def test_brier_score():
    rows = [0.3**2 + 0.2**2 + 0.1**2, 0.1**2 + 0.4**2 + 0.3**2, 0.75**2 + 0.25**2 + 0.5**2, 0.8**2 + 0.1**2 + 0.9**2]
    assert metrics.brier_score(LOGITS, LABELS).mean() == pytest.approx(np.mean(rows))


def calibration_error(logits, labels):
    return metrics.expected_calibration_error(metrics.confidence(logits), logits.argmax(axis=1) == labels)


def test_expected_calibration_error():
    """Confidences 0.7, 0.6, 0.5, 0.8 in bins of their own: gaps 0.3, 0.4, 0.5, 0.8."""
    assert calibration_error(LOGITS, LABELS) == pytest.approx((0.3 + 0.4 + 0.5 + 0.8) / 4)


def test_expected_calibration_error_cancels_within_a_bin():
    """Two rows at 0.5 in one bin, one right: no gap at all."""
    logits = np.log(np.array([[0.5, 0.5 - 1e-9], [0.5, 0.5 - 1e-9]]))
    assert calibration_error(logits, np.array([0, 1])) == pytest.approx(0.0, abs=1e-8)


def test_reliability():
    """Each bin has its rows, mean confidence and accuracy; the weighted gaps add up to the calibration error."""
    confidence, correct = np.array([0.62, 0.66, 0.9, 1.0]), np.array([True, False, True, True])
    rows, mean, accuracy = metrics.reliability(confidence, correct, bins=10)
    np.testing.assert_array_equal(rows, [0, 0, 0, 0, 0, 0, 2, 0, 1, 1])
    np.testing.assert_allclose(mean[[6, 8, 9]], [0.64, 0.9, 1.0])
    np.testing.assert_allclose(accuracy[[6, 8, 9]], [0.5, 1.0, 1.0])
    error = (rows * np.abs(mean - accuracy)).sum() / 4
    assert error == pytest.approx(metrics.expected_calibration_error(confidence, correct, bins=10))


def test_agreement():
    other = np.roll(LOGITS, 1, axis=0)
    assert metrics.agreement(LOGITS, LOGITS).mean() == 1.0
    assert metrics.agreement(LOGITS, other).mean() == pytest.approx(0.25)


def test_kl_divergence():
    """KL of (0.5, 0.5) from (0.9, 0.1), each way: they differ."""
    fair, unfair = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    assert metrics.kl_divergence(fair, unfair).mean() == pytest.approx(
        0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    )
    assert metrics.kl_divergence(unfair, fair).mean() == pytest.approx(
        0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    )


def test_log_softmax_of_large_logits():
    np.testing.assert_allclose(metrics.log_softmax(np.array([[1e4, 0.0]])), [[0.0, -1e4]])


def test_fitted_temperature():
    """It equals the best of a fine grid, scales with the logits, and ends at the limits if all rows are right or wrong."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 4, (500, 5)).astype(np.float32)
    labels = np.array([random.choice(5, p=np.exp(row / 2.5) / np.exp(row / 2.5).sum()) for row in logits.astype(float)])
    tried = np.exp(np.linspace(np.log(0.5), np.log(10), 3001))
    nll = [metrics.negative_log_likelihood(logits / t, labels).mean() for t in tried]
    best = tried[int(np.argmin(nll))]
    assert metrics.fitted_temperature(logits, labels) == pytest.approx(best, rel=2e-3)
    assert metrics.fitted_temperature(logits * 8, labels) == pytest.approx(8 * best, rel=2e-3)
    assert metrics.fitted_temperature(logits, logits.argmax(axis=1)) == pytest.approx(0.01)
    assert metrics.fitted_temperature(logits, logits.argmin(axis=1)) == pytest.approx(10_000)


def test_nearest():
    """Neighbors are sorted by angle, whatever the lengths, without the row itself; few rows have few neighbors."""
    angles = np.array([0.0, 0.3, 0.1, 3.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [0.1], [2]]
    np.testing.assert_array_equal(metrics.nearest(vectors, np.array([0, 3]), 2), [[2, 1], [1, 2]])
    assert metrics.nearest(vectors, np.array([1]), 9).shape == (1, 3)
