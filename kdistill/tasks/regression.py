"""Regression: each row has one or more numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.console import NumberFormat, five_digits
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.tasks.labels import RawLabels, is_labeled, is_text
from kdistill.tasks.task import Column, Floats, Headline, Measures, Prediction, Task, Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NUMERIC_CATEGORIES = 1000
GROUPS = 10  # of rows with labels of about the same size


class Regression(Task):
    """Labels and outputs (rows, numbers) are in the unit of the data. NaN is a missing number.

    Networks learn standardized numbers: a fixed last layer multiplies them by the standard deviation of the training labels
    and adds their mean. So outputs of any teacher and student are in the unit of the data.
    """

    name = "regression"
    metric = "absolute_error"
    headline = Headline("rmse", "RMSE", five_digits, five_digits)
    columns = (
        Column("MAE", "mae", five_digits),
        Column("RMSE", "rmse", five_digits),
        Column("R^2", "r2", NumberFormat(".4f")),
        Column("to teacher", "rmse_to_teacher", five_digits),
    )
    loss_title = "Squared error of standardized numbers"
    closeness = Column("RMSE to it", "rmse_to_teacher", NumberFormat(",.3g"))
    output = "values"
    picture = "predicted-against-true"
    unit = "number"
    hub_tasks: ClassVar[Mapping[str, str]] = {"table": "tabular-regression"}
    note = "MAE, RMSE: in the unit of the labels; to teacher: RMSE between network and teacher"

    def fits(self, labels: RawLabels) -> bool:
        """Return whether labels are clearly quantities and not classes.

        Integers in arrays are class numbers, and so is text. Other numbers are quantities if there are

        - more than `MAX_NUMERIC_CATEGORIES` distinct ones (integers: only with fewer than ten rows per number),
        - more than 20 distinct ones, most of them in a single row, or
        - numbers with a fractional part, and more distinct ones than half the rows.

        Several floats per row are quantities too, unless they are the probabilities of classes.
        """
        values = labels.values
        if values is None or values.dtype.kind not in ("iuf" if labels.by_name else "f"):
            return False
        if labels.columns > 1:
            probabilities = (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-2)
            return values.dtype.kind == "f" and not probabilities and not np.isin(values, (0, 1)).all()
        distinct, counts = np.unique(values, return_counts=True)
        number, is_float = len(distinct), values.dtype.kind == "f"
        many = number > MAX_NUMERIC_CATEGORIES and (is_float or labels.rows < 10 * number)
        mostly_single = number > 20 and 2 * np.count_nonzero(counts == 1) > number
        fractional = is_float and 2 * number > labels.rows and not np.array_equal(distinct, np.round(distinct))
        return bool(many or mostly_single or fractional)

    def read_labels(
        self, train: RawLabels, test: RawLabels | None, class_names: Sequence[str]
    ) -> tuple[Vocabulary, NDArray[np.float32], NDArray[np.float32] | None]:
        size = train.columns
        labels = self.encode(train, Vocabulary(size))
        constant = np.nanmax(labels, axis=0) == np.nanmin(labels, axis=0)
        if constant.all():
            raise KdistillError(
                f"{train.where} contains the single number {labels[0, 0]:g} (expected different numbers)"
            )
        if class_names and len(class_names) != size:
            raise KdistillError(f"{train.where}: class_names has {len(class_names)} names for {size} numbers per row")
        names = tuple(class_names or train.names or (f"value {number}" for number in range(size)))
        vocabulary = Vocabulary(size, names)
        return vocabulary, labels, None if test is None else self.encode(test, vocabulary)

    def encode(self, labels: RawLabels, vocabulary: Vocabulary) -> NDArray[np.float32]:
        size = vocabulary.size
        if labels.values is None:
            return np.full((labels.rows, size), np.nan, np.float32)
        if is_text(labels.values) or labels.values.dtype.kind not in "biuf":
            raise KdistillError(
                f"{labels.where} has type {labels.values.dtype} (expected numbers, for --task regression)"
            )
        matrix = labels.values.reshape(labels.rows, -1)
        if matrix.shape[1] != size:
            raise KdistillError(
                f"{labels.where} has {matrix.shape[1]} numbers per row (expected {size}, as in the training rows)"
            )
        with np.errstate(over="ignore"):
            numbers = matrix.astype(np.float32)
        if not (finite := np.isfinite(numbers)).all():
            row = int(np.argmin(finite.all(axis=1)))
            raise KdistillError(
                f"{labels.where} contains {matrix[row].tolist()} in row {row} (expected finite numbers)"
            )
        return numbers

    def label_type(self, outputs: int) -> tuple[tuple[int, ...], str]:
        return (outputs,), "<f4"

    def groups(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the tenth of the rows that a row is in, by its first number; -1 for rows without a label."""
        first = labels[:, 0]
        limits = (
            np.nanquantile(first, np.arange(1, GROUPS) / GROUPS) if is_labeled(labels).any() else np.zeros(GROUPS - 1)
        )
        return np.where(np.isnan(first), -1, np.searchsorted(limits, first)).astype(np.int64)

    def predict(self, outputs: Floats) -> Floats:
        return outputs

    def describe_predictions(
        self, outputs: Floats, names: Sequence[str], *, probabilities: bool = False
    ) -> Sequence[Prediction]:
        return [Prediction("values", outputs, names)]

    def score(self, predictions: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
        """Return the mean absolute error of each row."""
        distance = np.abs(predictions.astype(np.float64) - labels)
        known = ~np.isnan(distance)
        return np.asarray(np.where(known, distance, 0).sum(axis=1) / np.maximum(1, known.sum(axis=1)))

    def describe_score(self, score: float, labeled: int, outputs: int) -> str:
        return f"MAE {five_digits(score / labeled)} on {labeled:,} labeled rows"

    def draw(self, outputs: Floats, labels: NDArray[Any], names: Sequence[str], title: str) -> Figure | None:
        from kdistill.evaluation import figures

        return None if np.isnan(labels).all() else figures.predicted_against_true(outputs, labels, names, title)

    def measure(
        self, outputs: Iterable[Floats], labels: NDArray[Any], teacher_outputs: Iterable[Floats] | None = None
    ) -> Measures:
        predicted = np.concatenate(list(outputs)).astype(np.float64)
        measures = metrics.regression_measures(predicted, labels)
        if teacher_outputs is not None:
            distance = predicted - np.concatenate(list(teacher_outputs))
            measures["rmse_to_teacher"] = float(np.sqrt(np.mean(distance**2)))
        return measures

    def per_class(self, outputs: Floats, labels: NDArray[Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the measures of each number of a row."""
        each = [metrics.regression_measures(outputs[:, [number]], labels[:, [number]]) for number in range(len(names))]
        return [
            {"number": name, "MAE": measures["mae"], "RMSE": measures["rmse"], "R^2": measures["r2"]}
            for name, measures in zip(names, each, strict=True)
        ]

    def describe(self, measures: Mapping[str, Any], rows: int, split: str = "test") -> str:
        return f"RMSE {five_digits(measures['rmse'])}, R^2 {measures['r2']:.4f} on {rows:,} {split} rows"

    def rescaling(self, labels: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        mean, deviation = (function(labels, axis=0, dtype=np.float64) for function in (np.nanmean, np.nanstd))
        return np.asarray(mean, np.float32), np.asarray(np.where(deviation > 0, deviation, 1), np.float32)


TASK = Regression()
