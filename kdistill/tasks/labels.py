"""Labels as a reader found them, and the parts of their checks that several tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError

NO_LABEL = -1  # the label of a row without one, where labels are integers


@dataclass(frozen=True)
class RawLabels:
    """The labels of some rows as the data has them.

    Attributes:
        values: (rows,) or (rows, columns), numbers or strings; None for rows without labels.
        rows: the number of rows.
        where: what messages call the labels.
        by_name: whether each distinct value names a class. Otherwise only strings do, and numbers are class numbers.
        names: of the columns; empty if the data does not name them.
    """

    values: NDArray[Any] | None
    rows: int
    where: str
    by_name: bool = False
    names: Sequence[str] = ()

    @property
    def columns(self) -> int:
        """The number of values per row; 1 also for labels of shape (rows, 1)."""
        return 1 if self.values is None else self.values.size // max(1, self.rows)

    def column(self) -> NDArray[Any]:
        """Return the labels, one value per row, (rows,).

        Raises:
            KdistillError: if there are several values per row.
        """
        assert self.values is not None
        if self.columns != 1:
            raise KdistillError(
                f"{self.where} has shape {self.values.shape} (expected one label per row, ({self.rows},))"
            )
        return self.values.reshape(-1)


def as_string(value: Any) -> str:
    """Return a label or a name, which may be bytes, as a string."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def is_text(values: NDArray[Any]) -> bool:
    """Return whether values are strings or bytes."""
    return values.dtype.kind in "USO"


def is_labeled(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows have a label, or a value in any column: (rows,) of labels (rows,) or (rows, columns)."""
    known = ~np.isnan(labels) if labels.dtype.kind == "f" else labels != NO_LABEL
    return np.asarray(known if known.ndim == 1 else known.any(axis=1))
