"""Probabilities are recognized and converted to logits."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import mentions

from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.teachers.outputs import ZeroCount, are_probabilities, to_logits

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)


def test_probabilities_are_recognized():
    """Rows are probabilities if they are non-negative and sum to 1, as far as half precision can tell."""
    assert are_probabilities(PROBABILITIES)
    assert are_probabilities(PROBABILITIES.astype(np.float16))
    assert not are_probabilities(PROBABILITIES * 1.1)
    assert not are_probabilities(PROBABILITIES - [[0.1, 0, -0.1], [0.6, 0, -0.6], [0, 0, 0]])
    assert not are_probabilities(np.full((1, 3), np.nan))


def test_logits_have_the_same_probabilities():
    """The softmax of the logits is what was put in, with zeros at 1e-3 / classes; their mean is 0; zeros are counted."""
    zeros = ZeroCount()
    logits = to_logits(PROBABILITIES, zeros, "here")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits.mean(axis=1), 0, atol=1e-6)
    expected = np.where(PROBABILITIES == 0, 1e-3 / 3, PROBABILITIES)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(metrics.log_softmax(logits)), expected, rtol=1e-5)
    to_logits(PROBABILITIES[:1], zeros, "here")
    assert (zeros.count, zeros.total) == (3, 12)


def test_other_outputs_are_refused():
    """The message names the source and the option to pass."""
    with pytest.raises(KdistillError) as error:
        to_logits(PROBABILITIES * 2, ZeroCount(), "here")
    assert mentions(str(error.value), "here", "--teacher-output logits")
