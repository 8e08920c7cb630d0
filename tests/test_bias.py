"""Shifts of output biases from counts of predictions, and the student that `correct-bias` makes of them."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, Outcome, _run, write_npz
from test_cli import imports_of, stamps

from kdistill import CorrectBias, KdistillError, Reporter, Workspace, bias, correct_bias, metrics, shifted_networks
from kdistill.backend import keras
from kdistill.errors import UsageError
from kdistill.saved_models import SavedNetwork
from kdistill.stages import correct_bias as stage


def problem(rows=2000, classes=10, seed=0):
    """Logits of a fair classifier, and its labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows)
    return (draw.normal(size=(rows, classes)) + 3 * np.eye(classes)[labels]).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 10, 50])
def test_known_shift_is_recovered(classes):
    """What was added to the logits is taken away again, to the distance between rows."""
    logits, _ = problem(rows=20_000, classes=classes)
    wanted = bias.predicted(logits, np.zeros(classes))
    added = np.random.default_rng(1).normal(size=classes)
    added[0] -= 3
    shifts = bias.matching_shifts(logits + np.float32(added), wanted)
    np.testing.assert_array_equal(bias.predicted(logits + np.float32(added), shifts), wanted)
    expected = -(added - np.median(added))
    np.testing.assert_allclose(shifts - shifts.mean(), expected - expected.mean(), atol=0.05 if classes < 50 else 0.15)
    assert abs(np.median(shifts)) < 1e-9


def test_matching_counts_need_no_shift():
    logits, _ = problem()
    shifts = bias.matching_shifts(logits, bias.predicted(logits, np.zeros(10)))
    np.testing.assert_array_equal(shifts, np.zeros(10))


@pytest.mark.parametrize("never", [[3], [0, 1, 2, 3, 4, 5, 6, 9], list(range(9))])
def test_classes_never_predicted(never):
    """A class whose logit is 50 below the others' is predicted as often as it should be, and errors fall."""
    logits, labels = problem()
    logits[:, never] -= 50
    wanted = np.bincount(labels, minlength=10)
    shifts = bias.matching_shifts(logits, wanted)
    np.testing.assert_array_equal(bias.predicted(logits, shifts.astype(np.float32)), wanted)
    before, after = metrics.errors(logits, labels), metrics.errors(logits + shifts, labels)
    assert after < 0.1 * len(labels) + before / 2


def test_frequency_of_nought():
    """A class that no row should have is predicted for none, by a finite shift that is no larger than need be."""
    logits, labels = problem()
    wanted = bias.whole_counts(np.array([0, 0, *[1] * 8]), len(labels))
    shifts = bias.matching_shifts(logits, wanted)
    np.testing.assert_array_equal(bias.predicted(logits, shifts), wanted)
    assert list(wanted[:2]) == [0, 0]
    assert np.isfinite(shifts).all()
    assert np.abs(shifts).max() < 12
    alone = bias.matching_shifts(logits, bias.whole_counts(np.eye(10)[4], len(labels)))
    np.testing.assert_array_equal(bias.predicted(logits, alone), np.eye(10)[4] * len(labels))


def test_rows_that_are_alike_are_not_parted():
    """Among equal rows the nearest count that there is comes out, above or below."""
    logits = np.zeros((100, 2))
    for wanted, nearest in (([10, 90], [0, 100]), ([90, 10], [100, 0])):
        assert bias.predicted(logits, bias.matching_shifts(logits, np.array(wanted))).tolist() == nearest
    logits, labels = problem(rows=300, classes=5)
    thrice = np.repeat(logits, 3, axis=0)
    wanted = np.bincount(labels, minlength=5) * 3
    found = bias.predicted(thrice, bias.matching_shifts(thrice, wanted + [1, -1, 0, 0, 0]))
    assert np.abs(found - wanted).sum() <= 12


def test_many_classes_in_seconds():
    """1,000 classes, half of them never predicted rightly, on 20,000 rows; all counts match."""
    logits, labels = problem(rows=20_000, classes=1000)
    wanted = np.bincount(labels, minlength=1000)
    start = time.process_time()
    shifts = bias.matching_shifts(logits, wanted)
    assert time.process_time() - start < 30
    assert np.abs(bias.predicted(logits, shifts) - wanted).sum() == 0


def test_constants_change_nothing():
    """Neither one added to all logits nor one a row; and twice is the same to the bit."""
    logits, labels = problem()
    wanted = bias.whole_counts(np.arange(1, 11), len(labels))
    shifts = bias.matching_shifts(logits, wanted)
    np.testing.assert_array_equal(bias.matching_shifts(logits, wanted), shifts)
    np.testing.assert_allclose(bias.matching_shifts(logits.astype(float) + 7, wanted), shifts, atol=1e-6)
    by_row = np.random.default_rng(3).normal(size=(len(labels), 1))
    np.testing.assert_allclose(bias.matching_shifts(logits.astype(float) + by_row, wanted), shifts, atol=1e-6)


@pytest.mark.parametrize("frequencies", [[1, 1, 1], [0.5, 0.25, 0.25], [0, 0, 1], [0.1, 0.2, 0.7]])
def test_whole_counts_add_up(frequencies):
    for rows in (1, 2, 10, 1001):
        counts = bias.whole_counts(np.array(frequencies), rows)
        assert counts.sum() == rows
        assert (np.abs(counts - np.array(frequencies) / sum(frequencies) * rows) < 1).all()


def test_raised_classes():
    """One class that lacked stands alone; of two that were alone, all others are raised; alike ones are not parted."""
    assert np.flatnonzero(bias.raised(np.array([0.1, 0, 3.5, -0.2]))).tolist() == [2]
    assert np.flatnonzero(bias.raised(np.array([0.1, -6, 0.3, -7.5]))).tolist() == [0, 2]
    assert not bias.raised(np.zeros(4)).any()


def test_tuned_finds_the_fewest_errors():
    """The number that a fine grid finds, exactly, in blocks of any size; 0 where nothing is gained."""
    logits, labels = problem()
    lowered = logits - np.float32([0, 0, 2.5, 0, 2.5, 0, 0, 0, 0, 0])
    classes = np.isin(np.arange(10), [2, 4])
    halves = [(lowered[:700], labels[:700]), (lowered[700:], labels[700:])]
    found = bias.tuned(halves, classes)
    grid = [metrics.errors(lowered + shift * classes, labels) for shift in np.linspace(-1, 6, 7001)]
    assert found.errors == min(grid) < metrics.errors(lowered, labels)
    assert metrics.errors(lowered + found.shift * classes, labels) == found.errors
    perfect = np.float32(10 * np.eye(10)[labels])
    assert bias.tuned([(perfect, labels)], classes) == bias.Tuned(0.0, 0)
