"""Work in two steps: reading ahead, and computing several items at once."""

from __future__ import annotations

import threading

import pytest

from kdistill.data.read_ahead import TwoSteps


def test_two_items_at_once():
    """Two items are computed at the same time, and the results are in order."""
    both = threading.Barrier(2, timeout=20)

    def compute(item):
        both.wait()
        return 10 * item

    assert list(TwoSteps(lambda item: item + 1, compute, at_once=2).map(range(6))) == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("at_once", [1, 2])
def test_error_comes_after_the_results_before_it(at_once):
    """Nothing that was computed before an error is lost, and few items are taken ahead."""
    taken, results = [], []

    def compute(item):
        return 1 / (3 - item)

    with pytest.raises(ZeroDivisionError):
        results.extend(TwoSteps(lambda item: taken.append(item) or item, compute, at_once).map(range(100)))
    assert results == [1 / 3, 1 / 2, 1]
    assert len(taken) < 10
