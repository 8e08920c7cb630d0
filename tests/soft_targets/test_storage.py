"""How logits are stored: the top k, half precision and views, and logits that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import mentions

from kdistill.backend import tf
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.soft_targets.storage import Logits, LogitStorage, check_usable
from kdistill.training.losses.classification import expand_top_k

LOGITS = np.random.default_rng(0).normal(0, 3, (50, 3, 9)).astype(np.float32)


def test_top_k_keeps_the_probability_of_the_rest():
    """The two largest of four classes and the logit of the rest have the probabilities that were put in, at T."""
    probabilities = np.array([[0.1, 0.5, 0.3, 0.1]], np.float32)
    storage = LogitStorage(4, 2.0, "float32", 2)
    stored = storage.store(np.log(probabilities) * 2)
    np.testing.assert_array_equal(stored.top_classes, [[1, 2]])
    np.testing.assert_allclose(np.exp(metrics.log_softmax(stored.values, 2.0)), [[0.5, 0.3, 0.2]], atol=1e-6)
    np.testing.assert_allclose(np.exp(metrics.log_softmax(stored.dense(), 2.0)), probabilities, atol=1e-6)
    classes = tf.constant(stored.top_classes.astype(np.int32))
    for scatter in (True, False):
        in_training = expand_top_k(stored.values, classes, classes=4, rest=storage.rest_offset, scatter=scatter)
        np.testing.assert_allclose(in_training, stored.dense(), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("top_k", [None, 4])
def test_views_are_stored_as_single_views_are(dtype, top_k):
    """Each view of stored logits is, to the bit, what is stored of it alone; `at` selects rows of one view."""
    storage = LogitStorage(9, 2.0, dtype, top_k, 3)
    stored = storage.store(LOGITS)
    assert {name: (array.shape[1:], array.dtype.str) for name, array in stored.arrays().items()} == storage.columns
    assert stored.nbytes == sum(array.nbytes for array in stored.arrays().values())
    rows = np.array([7, 7, 0])
    for view in range(3):
        expected = storage.one_view.store(LOGITS[rows, view])
        for name, array in stored.at(rows, view).arrays().items():
            np.testing.assert_array_equal(array, expected.arrays()[name])
        np.testing.assert_array_equal(stored.dense()[rows, view], expected.dense())
    np.testing.assert_array_equal(stored.predictions(), LOGITS[:, 0].argmax(axis=1))


def test_refused_logits_are_named_by_row():
    """The message has the source and the first row's own number; the limit itself is allowed."""
    logits = np.zeros((5, 3), np.float32)
    logits[1] = 1e15
    check_usable(logits, "here", range(5))
    logits[[2, 4], 1] = np.inf
    with pytest.raises(KdistillError) as error:
        check_usable(logits, "here", np.array([9, 8, 77, 6, 5]))
    assert mentions(str(error.value), "here", "row 77")


def test_logits_beyond_half_precision_name_the_option():
    """A logit that float16 cannot hold is refused with the option that stores it."""
    stored = LogitStorage(3, 1.0, "float16").store(np.array([[0, 0, 0], [0, 1e5, 0]], np.float32))
    with pytest.raises(KdistillError) as error:
        stored.check("teacher", 10)
    assert mentions(str(error.value), "teacher", "row 11", "--dtype float32")
    Logits(LogitStorage(3, 1.0), np.full((1, 3), 1e5, np.float32)).check("teacher", 10)
