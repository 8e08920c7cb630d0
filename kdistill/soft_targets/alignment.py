"""Aligning rows with a soft-target file: rows are found by key, never by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.keys import positions, sortable
from kdistill.errors import KdistillError
from kdistill.soft_targets.file import SoftTargets
from kdistill.soft_targets.storage import Logits, LogitStorage
from kdistill.tasks import is_labeled


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

    def permuted(self, groups: NDArray[np.int64], seed: int) -> AlignedSoftTargets:
        """Return soft targets that are randomly permuted among the rows of each group (rows,), e.g. of each class.

        This keeps what a teacher knows about a class, and removes what it knows about a row.
        """
        random = np.random.default_rng([seed, len(groups)])
        order = np.arange(len(groups))
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            order[rows] = random.permutation(rows)
        return AlignedSoftTargets(self.soft, self.positions[order])


def align(
    soft: SoftTargets, keys: NDArray[np.uint8], labels: NDArray[Any] | None, rows_name: str, remedy: str = ""
) -> AlignedSoftTargets:
    """Find the soft targets of rows by their keys.

    Args:
        soft: the soft-target file.
        keys: (n, 16), `kdistill.row_keys` of the inputs, in any order and with any repetition.
        labels: (n, ...) their hard labels, as the task encodes them; None for those in the file.
        rows_name: what the rows are, for messages.
        remedy: the command that writes soft targets of these rows, for messages; by default the one that wrote the file.

    Raises:
        KdistillError: if a row is not in the file, or `check_score` fails.
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
        differ = sorted_labels[1:] != sorted_labels[:-1]
        differ = differ.any(axis=tuple(range(1, differ.ndim)))
        conflicts = (sorted_names[1:] == sorted_names[:-1]) & differ
        ambiguous = np.isin(names[rows], sorted_names[1:][conflicts])
        check_score(soft, rows[~ambiguous], labels[~ambiguous])
    return AlignedSoftTargets(soft, rows)


def check_score(soft: SoftTargets, rows: NDArray[np.int64], labels: NDArray[Any]) -> None:
    """Check that the teacher is as good on some rows (n,) by the labels given (n, ...) as by those in the file.

    Only rows with a label in both count.

    Raises:
        KdistillError: if it is not, since the labels have changed.
    """
    recorded, predictions = soft.index.labels[rows], soft.index.predictions[rows]
    counted = is_labeled(labels) & is_labeled(recorded)
    before, now = (float(soft.task.score(predictions, each)[counted].sum()) for each in (recorded, labels))
    if before != now:
        count = int(counted.sum())
        given, expected = (soft.task.describe_score(each, count, soft.classes) for each in (now, before))
        raise KdistillError(
            f"{soft.path}: its teacher is {given} by the labels given now (expected {expected}, as by those in the file): "
            f"{soft.remedy}"
        )
