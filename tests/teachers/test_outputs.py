"""Probabilities are recognized and converted to logits."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import mentions

from kdistill import tasks
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.teachers.outputs import ZeroCount, to_logits

CLASSES, LABELS = tasks.get("classification"), tasks.get("multi-label")
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)


def test_probabilities_are_recognized():
    """Rows are probabilities if they are non-negative and sum to 1, as far as half precision can tell."""
    assert CLASSES.are_probabilities(PROBABILITIES)
    assert CLASSES.are_probabilities(PROBABILITIES.astype(np.float16))
    assert not CLASSES.are_probabilities(PROBABILITIES * 1.1)
    assert not CLASSES.are_probabilities(PROBABILITIES - [[0.1, 0, -0.1], [0.6, 0, -0.6], [0, 0, 0]])
    assert not CLASSES.are_probabilities(np.full((1, 3), np.nan))


def test_logits_have_the_same_probabilities():
    """The softmax of the logits is what was put in, with zeros at 1e-3 / classes; their mean is 0; zeros are counted."""
    zeros = ZeroCount()
    logits = to_logits(PROBABILITIES, zeros, "here", CLASSES)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits.mean(axis=1), 0, atol=1e-6)
    expected = np.where(PROBABILITIES == 0, 1e-3 / 3, PROBABILITIES)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(metrics.log_softmax(logits)), expected, rtol=1e-5)
    to_logits(PROBABILITIES[:1], zeros, "here", CLASSES)
    assert (zeros.count, zeros.total) == (3, 12)


def test_other_outputs_are_refused():
    """The message names the source and the option to pass."""
    with pytest.raises(KdistillError) as error:
        to_logits(PROBABILITIES * 2, ZeroCount(), "here", CLASSES)
    assert mentions(str(error.value), "here", "--teacher-output logits")


def test_probabilities_of_several_labels():
    """Rows within [0, 1] are probabilities of labels, and sigmoid of their logits is what was put in, up to 1e-3."""
    probabilities = np.array([[0.9, 0.6, 0.0], [1.0, 0.25, 0.5]], np.float32)
    assert LABELS.are_probabilities(probabilities)
    assert not LABELS.are_probabilities(probabilities - 0.1)
    logits = to_logits(probabilities, ZeroCount(), "here", LABELS)
    np.testing.assert_allclose(metrics.sigmoid(logits), np.clip(probabilities, 1e-3, 1 - 1e-3), rtol=1e-5)


def test_average_of_several_labels():
    """The soft targets of an ensemble are the mean of its members' at T."""
    one, two = np.random.default_rng(0).normal(0, 4, (2, 5, 3)).astype(np.float32)
    mean = (metrics.sigmoid(one, 3.0) + metrics.sigmoid(two, 3.0)) / 2
    np.testing.assert_allclose(metrics.sigmoid(LABELS.average([one, two], 3.0), 3.0), mean, rtol=1e-5)


def test_average_without_soft_targets():
    """Numbers and vectors are averaged as they are, and are never probabilities."""
    outputs = [PROBABILITIES, 3 * PROBABILITIES]
    for name in ("regression", "embedding"):
        np.testing.assert_allclose(tasks.get(name).average(outputs, 20.0), 2 * PROBABILITIES, rtol=1e-6)
        assert not tasks.get(name).are_probabilities(PROBABILITIES)
