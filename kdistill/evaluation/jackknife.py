"""Intervals over test rows for any measure, e.g. for mAP and R^2, which are not means over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdistill.evaluation.intervals import CONFIDENCE, Estimate, t_quantile

GROUPS = 50


@dataclass(frozen=True)
class LeftOut:
    """A measure of some rows, and the same measure without each group of rows.

    The difference of two of them is that of two networks on the same rows, so its interval is the paired one.

    Attributes:
        value: of all rows.
        others: a value per group that is left out.
    """

    value: float
    others: Sequence[float]

    def __sub__(self, other: LeftOut) -> LeftOut:
        pairs = zip(self.others, other.others, strict=True)
        return LeftOut(self.value - other.value, [mine - its for mine, its in pairs])

    @property
    def estimate(self) -> Estimate:
        """Return the value with its 95% interval: value ± t * sqrt((n - 1) / n * sum((other - mean of others)^2)).

        This is the delete-a-group jackknife with n groups (Kott 2001). It does not include the variation between seeds or
        training rows.
        """
        n = len(self.others)
        if n < 2:
            return Estimate(self.value, n)
        mean = math.fsum(self.others) / n
        reach = t_quantile(CONFIDENCE, n - 1) * math.sqrt((n - 1) / n * math.fsum((x - mean) ** 2 for x in self.others))
        return Estimate(self.value, n, None, self.value - reach, self.value + reach)


def jackknife(measure: Callable[[NDArray[np.bool_]], Mapping[str, float]], rows: int) -> dict[str, LeftOut]:
    """Compute measures of all rows, and without each of at most `GROUPS` groups of rows.

    Groups are random, since neighboring rows can be alike. They are the same in each call with as many rows.

    Args:
        measure: returns measures by name, of the rows that a mask (rows,) selects.
        rows: how many there are.
    """
    groups = np.random.default_rng(0).permutation(rows) % GROUPS
    others = [measure(groups != group) for group in range(min(GROUPS, rows) if rows > 1 else 0)]
    found = measure(np.ones(rows, bool))
    return {name: LeftOut(value, [each[name] for each in others]) for name, value in found.items()}
