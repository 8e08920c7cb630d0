"""Shifts of output biases that match prediction counts to target counts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import count_errors

from kdistill.data.rounding import round_to_total
from kdistill.networks import bias_shifts
from kdistill.networks.bias_shifts import matching_shifts, prediction_counts, target_counts


def random_logits(rows=2000, classes=10, seed=0):
    """Return the logits of a fair classifier, and the labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows)
    return (draw.normal(size=(rows, classes)) + 3 * np.eye(classes)[labels]).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 10, 50])
def test_known_shift_is_recovered(classes):
    """A shift that was added to the logits is removed, up to the distance between rows."""
    logits, _ = random_logits(rows=20_000, classes=classes)
    targets = prediction_counts(logits, np.zeros(classes))
    added = np.random.default_rng(1).normal(size=classes)
    added[0] -= 3
    shifts = matching_shifts(logits + np.float32(added), targets)
    np.testing.assert_array_equal(prediction_counts(logits + np.float32(added), shifts), targets)
    expected = -(added - np.median(added))
    np.testing.assert_allclose(shifts - shifts.mean(), expected - expected.mean(), atol=0.05 if classes < 50 else 0.15)
    assert abs(np.median(shifts)) < 1e-9


def test_matching_counts_need_no_shift():
    logits, _ = random_logits()
    shifts = matching_shifts(logits, prediction_counts(logits, np.zeros(10)))
    np.testing.assert_array_equal(shifts, np.zeros(10))


@pytest.mark.parametrize("lowered", [[3], [0, 1, 2, 3, 4, 5, 6, 9], list(range(9))])
def test_classes_that_are_never_predicted(lowered):
    """Classes whose logits are 50 too low are predicted as often as their targets say, and errors fall."""
    logits, labels = random_logits()
    logits[:, lowered] -= 50
    targets = np.bincount(labels, minlength=10)
    shifts = matching_shifts(logits, targets)
    np.testing.assert_array_equal(prediction_counts(logits, shifts.astype(np.float32)), targets)
    before, after = count_errors(logits, labels), count_errors(logits + shifts, labels)
    assert after < 0.1 * len(labels) + before / 2


def test_target_of_zero():
    """A class with target 0 is never predicted, and its shift is finite and no larger than necessary."""
    logits, labels = random_logits()
    targets = target_counts(np.array([0, 0, *[1] * 8]), len(labels))
    shifts = matching_shifts(logits, targets)
    np.testing.assert_array_equal(prediction_counts(logits, shifts), targets)
    assert list(targets[:2]) == [0, 0]
    assert np.isfinite(shifts).all()
    assert np.abs(shifts).max() < 12
    only_class_4 = np.eye(10)[4]
    shifts = matching_shifts(logits, target_counts(only_class_4, len(labels)))
    np.testing.assert_array_equal(prediction_counts(logits, shifts), only_class_4 * len(labels))


def test_equal_rows_are_not_separated():
    """With equal rows, the nearest possible count is reached."""
    logits = np.zeros((100, 2))
    for targets, nearest in (([10, 90], [0, 100]), ([90, 10], [100, 0])):
        assert prediction_counts(logits, matching_shifts(logits, np.array(targets))).tolist() == nearest
    logits, labels = random_logits(rows=300, classes=5)
    tripled = np.repeat(logits, 3, axis=0)
    targets = np.bincount(labels, minlength=5) * 3
    counts = prediction_counts(tripled, matching_shifts(tripled, targets + np.array([1, -1, 0, 0, 0])))
    assert np.abs(counts - targets).sum() <= 12


@pytest.mark.parametrize(("count", "below"), [(0, 0), (1, 0), (2, 0), (3, 4), (4, 4), (5, 5), (6, 6)])
def test_threshold_between_equal_margins(count, below):
    """Of six margins, of which four are equal, none or all of the equal ones are below, whichever is nearer."""
    margins = np.array([1.0, 2.0, 1.0, 3.0, 1.0, 1.0])
    assert (margins < bias_shifts._threshold(margins, count)).sum() == below


@pytest.mark.slow
@pytest.mark.parametrize("frequencies", ["labels", "uniform"])
def test_many_classes(frequencies):
    """With 1,000 classes of three rows each, of which some are lowered, all counts match, in float32 nearly all."""
    logits, labels = random_logits(rows=3000, classes=1000)
    logits[:, ::10] -= 5
    targets = np.bincount(labels, minlength=1000) if frequencies == "labels" else np.full(1000, 3)
    shifts = matching_shifts(logits, targets)
    np.testing.assert_array_equal(prediction_counts(logits, shifts), targets)
    assert np.abs(prediction_counts(logits, shifts.astype(np.float32)) - targets).sum() <= 4


@pytest.mark.slow
def test_work_is_proportional_to_logits(monkeypatch):
    """Four times the classes on the same rows visit about four times the logits, not sixteen times."""
    blocks, visited_logits = bias_shifts._blocks, []
    for classes in (500, 2000):
        visited_rows = [0]

        def counting_blocks(rows, classes, visited_rows=visited_rows):
            visited_rows[0] += len(rows)
            return blocks(rows, classes)

        monkeypatch.setattr(bias_shifts, "_blocks", counting_blocks)
        logits, labels = random_logits(rows=2000, classes=classes)
        logits[:, ::10] -= 5
        matching_shifts(logits, np.bincount(labels, minlength=classes))
        visited_logits.append(visited_rows[0] * classes)
    assert 0 < visited_logits[1] < 8 * visited_logits[0]


def test_work_is_bounded_if_all_rows_are_equal():
    """A student with the same logits for all rows takes a bounded number of passes."""
    logits = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (2000, 1))
    shifts = matching_shifts(logits, np.full(200, 10))
    assert np.isfinite(shifts).all()
    assert np.abs(prediction_counts(logits, shifts) - 10).sum() <= 2 * 1990


def test_constants_change_nothing():
    """A constant added to all logits or to all logits of a row changes no shift; the same input gives the same bits."""
    logits, labels = random_logits()
    targets = target_counts(np.arange(1, 11), len(labels))
    shifts = matching_shifts(logits, targets)
    np.testing.assert_array_equal(matching_shifts(logits, targets), shifts)
    np.testing.assert_allclose(matching_shifts(logits.astype(float) + 7, targets), shifts, atol=1e-6)
    by_row = np.random.default_rng(3).normal(size=(len(labels), 1))
    np.testing.assert_allclose(matching_shifts(logits.astype(float) + by_row, targets), shifts, atol=1e-6)


@pytest.mark.parametrize("frequencies", [[1, 1, 1], [0.5, 0.25, 0.25], [0, 0, 1], [0.1, 0.2, 0.7]])
def test_target_counts_add_up(frequencies):
    """Each target is within 1 of its exact value."""
    for rows in (1, 2, 10, 1001):
        counts = target_counts(np.array(frequencies), rows)
        assert counts.sum() == rows
        assert (np.abs(counts - np.array(frequencies) / sum(frequencies) * rows) < 1).all()


def test_largest_remainders_are_rounded_up():
    """Of equal remainders, the first are rounded up."""
    assert round_to_total(np.array([1.2, 0.5, 2.5, 0.8]), 5).tolist() == [1, 1, 2, 1]
