"""Rows to train on, with their soft targets, and the rows that are held out."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import tasks
from kdistill.console import Reporter
from kdistill.data import Dataset, Split
from kdistill.data.keys import sortable, validation_rows
from kdistill.errors import KdistillError
from kdistill.settings import CLASSIFICATION, Training
from kdistill.soft_targets import AlignedSoftTargets, align
from kdistill.tasks import Task

if TYPE_CHECKING:
    from kdistill.data.augmentation import Views


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train a network on, or to evaluate it on.

    Attributes:
        split: inputs and labels.
        keys: row keys (rows, 16) uint8 if they are known already.
        teacher: the logits to match, row by row; None to learn from hard labels only.
        source: name of the transfer set; None if the rows are training rows of the dataset.
        views: the augmented views to train on, which the teacher saw too; None to train on the rows as they are.
        permuted: whether each row gets the soft targets of another row of its label, as a control.
        task: what the labels and the outputs of the network are.
        scale: (outputs,), what outputs and labels are divided by in the losses; None for 1.
        weights: (rows,), what the loss of each row is multiplied by; None for 1.
    """

    split: Split
    keys: NDArray[np.uint8] | None = None
    teacher: AlignedSoftTargets | None = None
    source: str | None = None
    views: Views | None = None
    permuted: bool = False
    task: Task = field(default_factory=lambda: tasks.get(CLASSIFICATION))
    scale: NDArray[np.float32] | None = None
    weights: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, dataset: Dataset, split: Split, **fields: Any) -> TrainingRows:
        """Return some rows of a dataset, or of a transfer set for it; `fields` are other attributes."""
        rescaling = dataset.rescaling
        return cls(split, **fields, task=dataset.task, scale=None if rescaling is None else rescaling[1])

    def __len__(self) -> int:
        return len(self.split)

    def weighted(self, settings: Training) -> TrainingRows:
        """Return the same rows with their weights: row weights times class weights, scaled to a mean of 1.

        Raises:
            UsageError: if the task has no classes to balance.
            KdistillError: if all weights are 0.
        """
        weights = self.split.weights
        if settings.class_weights != "none":
            balanced = self.task.balanced_weights(self.split.labels)
            weights = balanced if weights is None else weights * balanced
        if weights is None:
            return self
        mean = weights.mean(dtype=np.float64)
        if mean == 0:
            raise KdistillError("all rows to train on have weight 0 (expected at least one above 0)")
        return replace(self, weights=np.asarray(weights / mean, np.float32))

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs, the labels and one view's logits."""
        return self.split.inputs.nbytes + self.split.labels.nbytes + (self.teacher.nbytes if self.teacher else 0)

    def row_keys(self) -> NDArray[np.uint8]:
        """Return the row keys, (rows, 16). They are computed at most once."""
        return self.split.keys() if self.keys is None else self.keys

    def subset(self, mask: NDArray[np.bool_]) -> TrainingRows:
        """Return the rows where a mask (rows,) is true."""
        return replace(
            self,
            split=self.split.select(mask),
            keys=None if self.keys is None else self.keys[mask],
            teacher=self.teacher and self.teacher.chosen(mask),
        )


def held_out_rows(keys: NDArray[np.uint8], settings: Training) -> NDArray[np.bool_]:
    """Return which of the dataset's training rows, given by their keys (rows, 16), are validation rows: (rows,) bool.

    Raises:
        KdistillError: if all or none are.
    """
    mask = validation_rows(keys, settings.validation_fraction, settings.seed)
    if not 0 < mask.sum() < len(mask):
        raise KdistillError(
            f"--validation-fraction {settings.validation_fraction:g} holds out {mask.sum()} of {len(mask)} training "
            "rows: choose another fraction, so that there are rows to train on and rows to validate"
        )
    return mask


def hold_out(
    rows: TrainingRows, dataset: Dataset, settings: Training, reporter: Reporter
) -> tuple[TrainingRows, TrainingRows]:
    """Return the rows to train on, and the held-out rows to evaluate on.

    The latter are named `validation`, and are some of the dataset's training rows; without a `validation_fraction` they
    are its `test` rows. Validation rows are left out of the rows to train on, as are test rows of a transfer set.

    Raises:
        KdistillError: if no row is left, or all or none of the dataset's training rows are validation rows; or as `weighted`.
    """
    held_out = dataset.test
    excluded = [dataset.test.keys()] if rows.source else []
    if settings.validation_fraction:
        mask = held_out_rows(dataset.train.keys(), settings)
        held_out = replace(dataset.train.select(mask), name="validation")
        excluded.append(dataset.train.keys()[mask])
    if excluded:
        rows = replace(rows, keys=rows.row_keys())
        keep = ~np.isin(sortable(rows.row_keys()), sortable(np.concatenate(excluded)))
        names = "validation or test" if rows.source and settings.validation_fraction else held_out.name
        if not keep.any():
            raise KdistillError(f"no row is left to train on: all of them are {names} rows of {dataset.name}")
        if rows.source and not keep.all():
            reporter.say(f"Leaving out {int((~keep).sum()):,} rows that are {names} rows of {dataset.name}")
        rows = rows.subset(keep)
    if rows.teacher and rows.permuted:
        groups = rows.task.groups(rows.split.labels)
        rows = replace(rows, teacher=rows.teacher.permuted(groups, settings.seed))
    if settings.augment:
        from kdistill.data.augmentation import Views

        rows = replace(rows, views=Views(settings.augment, settings.seed))
    teacher = None if dataset.task.needs_labels or rows.teacher is None else _find_teacher(rows.teacher, held_out)
    return rows.weighted(settings), TrainingRows.of(dataset, held_out, teacher=teacher)


def _find_teacher(teacher: AlignedSoftTargets, held_out: Split) -> AlignedSoftTargets | None:
    """Return the soft targets of held-out rows, to evaluate against; None if some are not in the file."""
    with contextlib.suppress(KdistillError):
        return align(teacher.soft, held_out.keys(), None, "held-out rows")
    return None
