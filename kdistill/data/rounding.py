"""Round numbers to integers that keep their sum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def round_to_total(quotas: NDArray[np.floating[Any]], total: int) -> NDArray[np.int64]:
    """Round quotas down or up so that they add up to a total, by the method of the largest remainder.

    Args:
        quotas: (n,), not negative, whose sum is less than 1 away from the total.
        total: the sum of the result.

    Returns:
        (n,). Of equal remainders, the first are rounded up.
    """
    counts: NDArray[np.int64] = np.floor(quotas).astype(np.int64)
    counts[np.argsort(counts - quotas, kind="stable")[: total - counts.sum()]] += 1
    return counts
