"""Rows find their soft targets by key; rows that are not in a file and labels that have changed are refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import mentions
from hypothesis import given, settings
from hypothesis import strategies as st

from kdistill.errors import KdistillError
from kdistill.soft_targets import AlignedSoftTargets, SoftTargets, align
from kdistill.tasks import NO_LABEL


def aligned_logits(soft, keys, labels):
    aligned = align(soft, keys, labels, "rows")
    return aligned.at(np.arange(len(aligned))).dense()


@pytest.fixture(scope="module")
def soft(tmp_path_factory, rows, write):
    return SoftTargets.open(write(tmp_path_factory.mktemp("soft"), rows))


@given(st.lists(st.integers(0, 299), min_size=1, max_size=600))
@settings(max_examples=40, deadline=None)
def test_rows_are_found_by_content(soft, rows, order):
    """Any permutation, subset and repetition of the rows gets the logits of each row."""
    keys, logits, labels = rows
    assert (aligned_logits(soft, keys[order], labels[order]) == logits[order]).all()


def test_unknown_rows_are_refused(soft, rows):
    """The message counts the rows that are not in the file, and ends with the remedy."""
    keys, _, labels = rows
    other = keys.copy()
    other[:17] ^= 1
    with pytest.raises(KdistillError, match=r"kdistill soften --dataset mine$") as error:
        align(soft, other, labels, "rows of mine", "kdistill soften --dataset mine")
    assert mentions(str(error.value), 17, 300, "rows of mine", soft.path)


def test_changed_labels_are_refused(soft, rows):
    """Labels on which the teacher has another accuracy are refused with both numbers of correct rows."""
    keys, logits, labels = rows
    changed = np.roll(labels, 1)
    before, now = ((logits.argmax(axis=1) == each).sum() for each in (labels, changed))
    with pytest.raises(KdistillError, match="kdistill soften") as error:
        align(soft, keys, changed, "rows")
    assert mentions(str(error.value), soft.path, before, now, 300)


def test_rows_without_a_label_do_not_count(soft, rows):
    """Labels that are missing now are not compared; those that are there still are."""
    keys, logits, labels = rows
    missing = np.where(logits.argmax(axis=1) == labels, labels, -1)
    align(soft, keys, missing, "rows")
    with pytest.raises(KdistillError):
        align(soft, keys, np.where(missing < 0, logits.argmax(axis=1), missing), "rows")


def test_equal_rows_with_different_labels_are_accepted(tmp_path, rows, write):
    """A row that the dataset has twice with different labels does not count in the accuracy."""
    keys, logits, labels = (array.copy() for array in rows)
    keys[1], logits[1], labels[1] = keys[0], logits[0], (labels[0] + 1) % 7
    soft = SoftTargets.open(write(tmp_path, (keys, logits, labels)))
    assert (aligned_logits(soft, keys, labels) == logits).all()
    assert (aligned_logits(soft, keys[1:], labels[1:]) == logits[1:]).all()


def test_keys_with_zero_bytes_are_told_apart(tmp_path, rows, write):
    """Keys that end in zeros, or differ in the last byte only, are different keys."""
    keys, logits, labels = (array.copy() for array in rows)
    keys[:3] = 0
    keys[1, 15], keys[2, 0] = 1, 1
    soft = SoftTargets.open(write(tmp_path, (keys, logits, labels)))
    assert (aligned_logits(soft, keys[[2, 0, 1]], labels[[2, 0, 1]]) == logits[[2, 0, 1]]).all()


def test_permuted_soft_targets_stay_within_their_label():
    """Each label keeps its set of soft targets, also the rows without one; most rows get another row's."""
    labels = np.random.default_rng(0).choice([NO_LABEL, 0, 1, 2], 200)
    positions = np.arange(1000, 1200)
    aligned = AlignedSoftTargets(None, positions)
    permuted = aligned.permuted(labels, 3).positions
    for label in (NO_LABEL, 0, 1, 2):
        assert sorted(permuted[labels == label]) == positions[labels == label].tolist()
    assert (permuted != positions).mean() > 0.9
    assert (aligned.permuted(labels, 3).positions == permuted).all()
    assert (aligned.permuted(labels, 4).positions != permuted).any()
