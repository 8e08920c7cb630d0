"""Labels: checks what a reader found and turns it into class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.reader import Part, as_string, check_labels, explain_label_matrix
from kdistill.errors import KdistillError

NO_LABEL = -1  # the label of a row without one
MAX_CLASSES = 1 << 20  # a larger label means damaged data, or numbers that are not classes
MANY_CLASSES = 10_000  # more classes than this cause a warning
MAX_NUMERIC_CATEGORIES = 1000


def class_numbers(part: Part, place: str, class_names: Sequence[str] | None) -> NDArray[np.int64]:
    """Return the class number of each row.

    Args:
        part: inputs and labels, as a reader found them.
        place: where the data is, for messages.
        class_names: the names that the labels can have; None if the labels are class numbers.

    Returns:
        (rows,) from 0; `NO_LABEL` for each row of a part without labels.

    Raises:
        KdistillError: if a label is not the name or the number of a class.
    """
    rows = len(part.inputs)
    if part.labels is None:
        return np.full(rows, NO_LABEL, np.int64)
    where = f"{place}: {part.labels_name}"
    labels = part.labels if class_names is None else _number_names(part.labels, class_names, where)
    check_labels(labels.shape, labels.dtype, rows, where)
    if labels.size != rows:
        explanation = explain_label_matrix(labels, "labels.argmax(axis=1)")
        raise KdistillError(f"{where} has shape {labels.shape}: {explanation}")
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iufb":
        raise KdistillError(f"{where} has type {labels.dtype} (expected class numbers)")
    values = labels.astype(np.float64)
    wrong = ~((values >= 0) & (values < MAX_CLASSES) & (values == np.floor(values)))  # true for NaN
    if wrong.any():
        row = int(np.argmax(wrong))
        raise KdistillError(
            f"{where} contains {labels[row]} in row {row} (expected class numbers, integers from 0 to {MAX_CLASSES - 1}; "
            "regression is not supported)"
        )
    return labels.astype(np.int64)


def category_names(labels: NDArray[Any]) -> list[str]:
    """Return the names of the distinct labels in ascending order; whole numbers are written without a decimal point."""
    values = np.unique(labels)
    whole = values.dtype.kind == "f" and np.array_equal(values, np.round(values))
    return [as_string(int(value) if whole else value) for value in values]


def _number_names(labels: NDArray[Any], class_names: Sequence[str], where: str) -> NDArray[np.int64]:
    values, inverse = np.unique(labels, return_inverse=True)
    numbers = {name: number for number, name in enumerate(class_names)}
    names = category_names(values)
    if unknown := [name for name in names if name not in numbers]:
        classes = ", ".join(class_names[:10]) + ", ..." * (len(class_names) > 10)
        raise KdistillError(f"{where} contains {unknown[0]!r} (expected one of the classes {classes})")
    return np.array([numbers[name] for name in names], np.int64)[inverse.reshape(-1)]


def refuse_regression(part: Part, where: str, *, table: bool) -> None:
    """Refuse numeric labels that look like regression targets; each distinct number would become a class.

    Integers in arrays are class numbers by definition and always pass. Other numbers fail if there are

    - more than `MAX_NUMERIC_CATEGORIES` distinct ones (integers: only with fewer than ten rows per number),
    - more than 20 distinct ones, most of them in a single row, or
    - numbers with a fractional part, and more distinct ones than half the rows.

    Args:
        part: the training rows, with labels.
        where: what the labels are called, for messages.
        table: whether the labels are a table's column, where integers can be anything.

    Raises:
        KdistillError: if the labels look like regression targets.
    """
    labels = part.labels
    if labels is None or labels.dtype.kind not in ("iuf" if table else "f"):
        return
    values, counts = np.unique(labels, return_counts=True)
    distinct, rows, is_float = len(values), len(labels), labels.dtype.kind == "f"
    many = distinct > MAX_NUMERIC_CATEGORIES and (is_float or rows < 10 * distinct)
    mostly_single = distinct > 20 and 2 * np.count_nonzero(counts == 1) > distinct
    fractional = is_float and 2 * distinct > rows and not np.array_equal(values, np.round(values))
    if many or mostly_single or fractional:
        fix = "write them as text, e.g. class 7" if table else "store them as integers from 0"
        raise KdistillError(
            f"{where} contains {distinct:,} different numbers in {rows:,} rows, e.g. {values[0]}: regression is not "
            f"supported; if these numbers are classes, {fix}"
        )


def class_warnings(classes: int, used: int, where: str) -> tuple[str, ...]:
    """Return a warning if there are very many classes, or if most of them are unused."""
    if classes <= MANY_CLASSES and classes <= 2 * used:
        return ()
    fix = ": store numpy.unique(labels, return_inverse=True)[1] to number only the used ones" if used < classes else ""
    return (f"{where} has {classes:,} classes, {used:,} of them used, and networks have an output for each class{fix}",)
