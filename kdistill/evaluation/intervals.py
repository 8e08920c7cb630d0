"""Means over seeds with Student's t intervals. Standard library only.

The quantile is computed here since SciPy is not a dependency; a test compares it with published tables.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of n numbers with a 95% confidence interval.

    The interval assumes independent draws of a normal distribution. For differences between networks of the same seed
    it is the paired interval.

    Attributes:
        mean: of the numbers.
        n: how many there are.
        sd: standard deviation (n - 1); None for one number.
        low: end of the interval by Student's t; None for one number.
        high: the other end.
    """

    mean: float
    n: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from one number or more."""
        mean, n = statistics.fmean(values), len(values)
        if n == 1:
            return cls(mean, n)
        sd = statistics.stdev(values)
        reach = t_quantile(CONFIDENCE, n - 1) * sd / math.sqrt(n)
        return cls(mean, n, sd, mean - reach, mean + reach)


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a proportion, e.g. of errors among test rows (Wilson 1927).

    It assumes that the rows are independent draws. It says nothing about other seeds or training rows.
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle, share = (count + z * z / 2) / (total + z * z), count / total
    reach = z / (total + z * z) * math.sqrt(total * share * (1 - share) + z * z / 4)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of the exact McNemar test of two networks on the same rows.

    Args:
        gained: rows that only the second network classifies correctly.
        lost: rows that only the first network classifies correctly.
    """
    total, fewer = gained + lost, min(gained, lost)
    return min(1.0, sum(math.comb(total, count) for count in range(fewer + 1)) / (1 << max(total - 1, 0)))


def t_quantile(confidence: float, degrees: int) -> float:
    """Return the t for which |T| <= t has a given probability, where T has Student's t distribution.

    Args:
        confidence: the probability, above 0 and below 1.
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):  # bisects the angle whose tangent is t / sqrt(degrees), to the last bit
        angle = (low + high) / 2
        low, high = (angle, high) if _coverage(angle, degrees) < confidence else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def _coverage(angle: float, degrees: int) -> float:
    """Return P(|T| <= sqrt(degrees) * tan(angle)) by the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
