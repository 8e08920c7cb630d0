"""Selection: which rows of a dataset or transfer set are used, by class and by fraction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdistill.data.dataset import Dataset, Split
from kdistill.data.keys import hash_keys, sortable
from kdistill.data.reader import did_you_mean
from kdistill.data.rounding import round_to_total
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import Selection, split_list
from kdistill.tasks import NO_LABEL


def selection_mask(
    rows: Split, selection: Selection, dataset: Dataset, keys: NDArray[np.uint8] | None = None
) -> NDArray[np.bool_]:
    """Return which rows a selection keeps: those of its classes, and then a fraction of these.

    Args:
        rows: the training rows of the dataset, or a transfer set for it.
        selection: names its classes by class name, or else by class number.
        dataset: defines the classes.
        keys: the row keys of `rows`, if known. Only a fraction needs them.

    Returns:
        (rows,) bool.

    Raises:
        UsageError: if there is no such class.
        KdistillError: if classes are selected among rows without labels, or no row is left.
    """
    mask = np.ones(len(rows), bool)
    for option, value in (("omit-class", selection.omit_class), ("only-classes", selection.only_classes)):
        if value is not None:
            if rows.labels.ndim > 1:
                raise UsageError(f"--{option} does not apply to the task {dataset.task.name}: remove it")
            numbers = [_class_number(name, option, dataset) for name in split_list(value)]
            if unlabeled := len(rows) - rows.labeled_rows:
                raise KdistillError(
                    f"--{option} {value}: {unlabeled:,} of the {len(rows):,} rows have no label; omit --{option} or "
                    "these rows"
                )
            mask = np.isin(rows.labels, numbers, invert=option == "omit-class")
    if selection.fraction is not None and mask.any():
        kept_keys = rows.select(mask).keys() if keys is None else keys[mask]
        groups = dataset.task.groups(rows.labels[mask])
        mask[mask] = fraction_mask(kept_keys, groups, selection.fraction, selection.rows_seed)
    if not mask.any():
        raise KdistillError(f"{selection} leaves none of the {len(rows):,} rows (expected at least one)")
    return mask


def describe_selection(rows: Split, selection: Selection, mask: NDArray[np.bool_]) -> str:
    """Return a line with the number of rows and classes that a selection keeps; empty if it selects nothing."""
    if not str(selection):
        return ""
    classes = ""
    if rows.labels.dtype.kind == "i" and rows.labels.ndim == 1 and rows.labeled_rows:
        total, kept = (len(set(labels.tolist()) - {NO_LABEL}) for labels in (rows.labels, rows.labels[mask]))
        classes = f", {kept} of {total} classes"
    return f"{selection} keeps {int(mask.sum()):,} of {len(rows):,} rows{classes}"


def fraction_mask(keys: NDArray[np.uint8], labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows a fraction keeps: in each class, the rows with the lowest hash of row key and seed.

    The order of the rows does not matter. The rows of a class at a smaller fraction are among those at a larger
    one, except for rounding. The hash is independent of the one in `validation_rows`.

    Args:
        keys: (rows, 16) from `row_keys`.
        labels: (rows,) class numbers; rows without a label count as one more class.
        fraction: above 0, at most 1.
        seed: other seeds keep other rows.

    Returns:
        (rows,) bool, with round(fraction * rows) rows kept. Of equal rows in a class the first are kept.
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    hashes = hash_keys(keys, np.random.SeedSequence(seed, spawn_key=(1,)))
    order = np.lexsort((sortable(keys), hashes, classes))
    rank_in_class = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    mask = np.zeros(len(keys), bool)
    mask[order] = rank_in_class < np.repeat(_kept_per_class(counts, fraction), counts)
    return mask


def _kept_per_class(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Return how many rows of each class a fraction keeps, rounded by the largest-remainder method.

    A class without a row takes one from the class that keeps most, unless fewer rows than classes are kept.
    """
    total = round(fraction * int(counts.sum()))
    kept = round_to_total(fraction * counts, total)
    while total >= len(kept) and not kept.all():
        kept[kept.argmax()] -= 1
        kept[kept.argmin()] += 1
    return kept


def _class_number(name: str, option: str, dataset: Dataset) -> int:
    if name in dataset.class_names:
        return dataset.class_names.index(name)
    if name.isdecimal() and int(name) < dataset.classes:
        return int(name)
    names = ", ".join(dataset.class_names[:10]) + ", ..." * (dataset.classes > 10)
    raise UsageError(
        f"--{option} {name}: not a class of {dataset.name} (expected {names}, or a number from 0 to "
        f"{dataset.classes - 1}){did_you_mean(name, dataset.class_names)}"
    )
