"""Aligning rows with a soft-target file: rows are found by key, never by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data import NO_LABEL
from kdistill.data.keys import positions, sortable
from kdistill.errors import KdistillError
from kdistill.soft_targets.file import SoftTargets
from kdistill.soft_targets.storage import Logits, LogitStorage


@dataclass(frozen=True)
class AlignedSoftTargets:
    """The soft targets of some rows, in the order of those rows; `positions` (rows,) are their numbers in the file."""

    soft: SoftTargets
    positions: NDArray[np.int64]

    @property
    def storage(self) -> LogitStorage:
        return self.soft.storage

    @property
    def nbytes(self) -> int:
        """The size of the logits of one view."""
        return len(self) * self.storage.one_view.row_bytes

    def __len__(self) -> int:
        return len(self.positions)

    def at(self, rows: NDArray[Any], view: int = 0) -> Logits:
        """Read the logits of some rows, by number or mask, in one view."""
        return self.soft.take(self.positions[rows], view)

    def chosen(self, mask: NDArray[np.bool_]) -> AlignedSoftTargets:
        """Return the soft targets of the rows that a mask (rows,) selects."""
        return AlignedSoftTargets(self.soft, self.positions[mask])

    def permuted(self, labels: NDArray[np.int64], seed: int) -> AlignedSoftTargets:
        """Return soft targets that are randomly permuted among the rows of each label, and among those without one.

        This keeps what a teacher knows about a class, and removes what it knows about a row.
        """
        random = np.random.default_rng([seed, len(labels)])
        order = np.arange(len(labels))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            order[rows] = random.permutation(rows)
        return AlignedSoftTargets(self.soft, self.positions[order])


def align(
    soft: SoftTargets, keys: NDArray[np.uint8], labels: NDArray[np.int64] | None, rows_name: str, remedy: str = ""
) -> AlignedSoftTargets:
    """Find the soft targets of rows by their keys.

    Args:
        soft: the soft-target file.
        keys: (n, 16), `kdistill.row_keys` of the inputs, in any order and with any repetition.
        labels: (n,) their hard labels, `NO_LABEL` for none; None for those in the file.
        rows_name: what the rows are, for messages.
        remedy: the command that writes soft targets of these rows, for messages; by default the one that wrote the file.

    Raises:
        KdistillError: if a row is not in the file, or `check_accuracy` fails.
    """
    names = sortable(soft.keys)
    order = np.argsort(names, kind="stable")
    rows = positions(keys, soft.keys, order)
    if missing := int((rows < 0).sum()):
        raise KdistillError(
            f"{missing:,} of the {len(keys):,} {rows_name} are not in {soft.path}, which was made from "
            f"{soft.manifest.require_input('dataset').name}: {remedy or soft.remedy}"
        )
    if labels is not None:
        sorted_names, sorted_labels = names[order], soft.labels[order]
        conflicts = (sorted_names[1:] == sorted_names[:-1]) & (sorted_labels[1:] != sorted_labels[:-1])
        ambiguous = np.isin(names[rows], sorted_names[1:][conflicts])
        check_accuracy(soft, rows[~ambiguous], labels[~ambiguous])
    return AlignedSoftTargets(soft, rows)


def check_accuracy(soft: SoftTargets, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    """Check that the teacher is correct on as many rows (n,) by the labels given (n,) as by those in the file.

    Only rows with a label in both count.

    Raises:
        KdistillError: if it is not, since the labels have changed.
    """
    recorded, predictions = soft.index.labels[rows], soft.index.predictions[rows]
    counted = (labels != NO_LABEL) & (recorded != NO_LABEL)
    before, now = (int(((predictions == each) & counted).sum()) for each in (recorded, labels))
    if before != now:
        count = int(counted.sum())
        raise KdistillError(
            f"{soft.path}: its teacher is correct on {now:,} of these {count:,} rows ({now / count:.2%}) by the labels "
            f"given now (expected {before:,}, {before / count:.2%}, as by those in the file): {soft.remedy}"
        )
