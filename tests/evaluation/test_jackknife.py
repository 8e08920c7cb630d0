"""Intervals over test rows."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill.evaluation.intervals import Estimate
from kdistill.evaluation.jackknife import GROUPS, LeftOut, jackknife

VALUES = np.random.default_rng(0).normal(3, 2, 7 * GROUPS)


def test_mean_of_equal_groups():
    """The interval of a mean is that of the means of the groups by Student's t."""
    groups = []

    def measure(mask):
        if not mask.all():
            groups.append(VALUES[~mask].mean())
        return {"mean": VALUES[mask].mean()}

    found = jackknife(measure, len(VALUES))["mean"].estimate
    expected = Estimate.of(groups)
    assert len(groups) == GROUPS
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_difference_is_paired():
    """Two measures that always differ by 1 differ by exactly 1, however much rows differ."""
    found = jackknife(lambda mask: {"a": VALUES[mask].mean() + 1, "b": VALUES[mask].mean()}, len(VALUES))
    difference = (found["a"] - found["b"]).estimate
    assert (difference.mean, difference.low, difference.high) == pytest.approx((1, 1, 1))


def test_few_rows():
    """With fewer rows than groups, each row is a group; a single row has no interval."""
    assert len(jackknife(lambda mask: {"rows": mask.sum()}, 9)["rows"].others) == 9
    assert jackknife(lambda mask: {"rows": mask.sum()}, 1)["rows"].estimate.low is None
    assert LeftOut(2.0, []).estimate == Estimate(2.0, 0)
