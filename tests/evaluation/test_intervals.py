"""Means with Student's t intervals."""

from __future__ import annotations

import pytest

from kdistill.evaluation.intervals import Estimate, mcnemar, t_quantile, wilson


@pytest.mark.parametrize(
    ("confidence", "degrees", "known"),
    [
        (0.95, 1, 12.706204736),
        (0.95, 2, 4.302652730),
        (0.95, 3, 3.182446305),
        (0.95, 4, 2.776445105),
        (0.95, 9, 2.262157163),
        (0.95, 30, 2.042272456),
        (0.95, 100, 1.983971519),
        (0.99, 7, 3.499483297),
        (0.5, 1, 1.0),
    ],
)
def test_t_quantiles(confidence, degrees, known):
    """Quantiles equal those of published tables."""
    assert t_quantile(confidence, degrees) == pytest.approx(known, abs=1e-6)


def test_estimate():
    """The interval of 1, 2, 3 is 2 ± 4.3027 / sqrt(3); one number has no interval."""
    estimate = Estimate.of([1, 2, 3])
    assert (estimate.mean, estimate.sd, estimate.n) == (2.0, 1.0, 3)
    assert estimate.high - 2 == pytest.approx(4.302652730 / 3**0.5)
    assert 2 - estimate.low == pytest.approx(4.302652730 / 3**0.5)
    assert Estimate.of([5]) == Estimate(5.0, 1)


def test_proportion():
    """Wilson's interval of 5 of 10 is 0.2366 to 0.7634 (Newcombe 1998, method 3), and that of 0 of 10 begins at 0."""
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_paired_rows():
    """Of 9 rows that changed, 8 or more the same way has the probability 2 * (9 + 1) / 2**9; no change has 1."""
    assert mcnemar(1, 8) == mcnemar(8, 1) == pytest.approx(20 / 512)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1.0
