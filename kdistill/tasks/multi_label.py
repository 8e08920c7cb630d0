"""Multi-label classification: each row has any number of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.console import NumberFormat
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.tasks.labels import NO_LABEL, RawLabels, as_string, is_text
from kdistill.tasks.task import Column, Floats, Headline, Measures, Prediction, Task, Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEPARATOR = ";"  # between the classes of a row, in a column of text


class MultiLabel(Task):
    """Labels (rows, classes) are 0 or 1, outputs are a logit per class, and soft targets are sigmoid(logits / T).

    A class of a row can also be `NO_LABEL`: it is then left out of the losses and measures.
    """

    name = "multi-label"
    metric = "label_accuracy"
    headline = Headline("map", "mAP", NumberFormat(".4f"), NumberFormat(".4f"), lower_is_better=False)
    columns = (
        Column("mAP", "map", NumberFormat(".4f")),
        Column("micro-F1", "micro_f1", NumberFormat(".4f")),
        Column("macro-F1", "macro_f1", NumberFormat(".4f")),
        Column("Hamming", "hamming_loss", NumberFormat(".4f")),
        Column("agree", "agreement", NumberFormat(".1%")),
    )
    loss_title = "Binary cross-entropy with the labels"
    closeness = Column("agree", "agreement", NumberFormat(".2%"))
    gap = "label_accuracy"
    picture = "average-precision"
    hub_tasks: ClassVar[Mapping[str, str]] = {"table": "tabular-classification", "image": "image-classification"}
    note = (
        "mAP: mean over the classes of the average precision; F1 and Hamming loss at a probability of 0.5\n"
        "agree: classes of rows on which network and teacher agree"
    )

    def fits(self, labels: RawLabels) -> bool:
        if labels.values is None:
            return False
        if is_text(labels.values):
            return labels.columns == 1 and any(SEPARATOR in as_string(value) for value in labels.column())
        matrix = labels.values.reshape(labels.rows, -1)
        return labels.columns > 1 and _is_binary(matrix) and bool((matrix.sum(axis=1) != 1).any())

    def read_labels(
        self, train: RawLabels, test: RawLabels | None, class_names: Sequence[str]
    ) -> tuple[Vocabulary, NDArray[np.int8], NDArray[np.int8] | None]:
        assert train.values is not None
        if is_text(train.values):
            names = list(class_names) or sorted({name for value in train.column() for name in _split(value)})
            size = len(names)
        else:
            size = train.columns
            names = list(class_names or train.names) or [str(number) for number in range(size)]
        if size < 2:
            raise KdistillError(f"{train.where} contains {size} classes (expected two or more)")
        if len(names) != size or len(set(names)) != size:
            raise KdistillError(f"{train.where}: {len(set(names))} distinct class names for {size} classes")
        labels = self.encode(train, Vocabulary(size, names))
        vocabulary = Vocabulary(size, names, _unused(labels, names, train.where))
        return vocabulary, labels, None if test is None else self.encode(test, vocabulary)

    def encode(self, labels: RawLabels, vocabulary: Vocabulary) -> NDArray[np.int8]:
        if labels.values is None:
            return np.full((labels.rows, vocabulary.size), NO_LABEL, np.int8)
        if is_text(labels.values):
            return _from_text(labels.column(), vocabulary.names, labels.where)
        matrix = labels.values.reshape(labels.rows, -1)
        if matrix.shape[1] != vocabulary.size:
            raise KdistillError(
                f"{labels.where} has {matrix.shape[1]} classes (expected {vocabulary.size}, as in the training rows)"
            )
        if not _is_binary(matrix):
            row = int(np.argmin(np.isin(matrix, (0, 1)).all(axis=1)))
            raise KdistillError(
                f"{labels.where} contains {matrix[row].tolist()} in row {row} (expected 0 or 1 for each class)"
            )
        return matrix.astype(np.int8)

    def label_type(self, outputs: int) -> tuple[tuple[int, ...], str]:
        return (outputs,), "<i1"

    def groups(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)

    def are_probabilities(self, outputs: Floats) -> bool:
        return bool(((outputs >= 0) & (outputs <= 1)).all())

    def from_probabilities(self, probabilities: Floats, zero_mass: float) -> Floats:
        clipped = np.clip(probabilities.astype(np.float64), zero_mass, 1 - zero_mass)
        return np.asarray(np.log(clipped / (1 - clipped)), np.float32)

    def average(self, outputs: Sequence[Floats], temperature: float) -> Floats:
        mean = np.mean([metrics.sigmoid(logits, temperature) for logits in outputs], axis=0)
        tiny = np.finfo(np.float64).eps
        mean = np.clip(mean, tiny, 1 - tiny)
        return np.asarray(temperature * np.log(mean / (1 - mean)), np.float32)

    def activation(self, outputs: Floats, temperature: float) -> Floats:
        return metrics.sigmoid(outputs, temperature)

    def predict(self, outputs: Floats) -> NDArray[np.int8]:
        return (outputs > 0).astype(np.int8)

    def describe_predictions(
        self, outputs: Floats, names: Sequence[str], *, probabilities: bool = False
    ) -> Sequence[Prediction]:
        """Return the classes with a probability above 0.5, in one text per row."""
        array = np.array(names, object)
        joined = [SEPARATOR.join(array[row == 1]) for row in self.predict(outputs)]
        each = metrics.sigmoid(outputs).astype(np.float32)
        every = [Prediction("probabilities", each, names)] if probabilities else []
        return [Prediction("classes", np.array(joined, object)), *every]

    def score(self, predictions: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
        """Return the number of classes that are right."""
        return np.asarray((predictions == labels).sum(axis=1), np.float64)

    def describe_score(self, score: float, labeled: int, outputs: int) -> str:
        total = labeled * outputs
        return f"right about {score / total:.2%} of the {total:,} labels"

    def draw(self, outputs: Floats, labels: NDArray[Any], names: Sequence[str], title: str) -> Figure | None:
        from kdistill.evaluation import figures

        known = labels != NO_LABEL
        if not known.any():
            return None
        return figures.average_precisions(metrics.average_precisions(outputs, labels, known), names, title)

    def measure(
        self, outputs: Iterable[Floats], labels: NDArray[Any], teacher_outputs: Iterable[Floats] | None = None
    ) -> Measures:
        logits = np.concatenate(list(outputs))
        known = labels != NO_LABEL
        precisions = metrics.average_precisions(logits, labels, known)
        micro, macro = metrics.f1_scores(logits > 0, labels == 1, known)
        wrong = ((logits > 0) != (labels == 1)) & known
        measures: Measures = {
            "map": 0.0 if np.isnan(precisions).all() else float(np.nanmean(precisions)),
            "micro_f1": micro,
            "macro_f1": macro,
            "hamming_loss": float(wrong.sum() / known.sum()),
            "label_accuracy": float(1 - wrong.sum() / known.sum()),
        }
        if teacher_outputs is not None:
            measures["agreement"] = float(((logits > 0) == (np.concatenate(list(teacher_outputs)) > 0)).mean())
        return measures

    def per_class(self, outputs: Floats, labels: NDArray[Any], names: Sequence[str]) -> list[dict[str, Any]]:
        known, guess = labels != NO_LABEL, outputs > 0
        precisions = metrics.average_precisions(outputs, labels, known)
        right = (guess & (labels == 1)).sum(axis=0)
        missed, false = ((~guess & (labels == 1)).sum(axis=0), (guess & (labels == 0)).sum(axis=0))
        return [
            {
                "class": names[number],
                "rows": int(right[number] + missed[number]),
                "missed": int(missed[number]),
                "false": int(false[number]),
                "average precision": None if np.isnan(precisions[number]) else float(precisions[number]),
                "F1": float(2 * right[number] / max(1, 2 * right[number] + missed[number] + false[number])),
            }
            for number in range(len(names))
        ]

    def describe(self, measures: Mapping[str, Any], rows: int, split: str = "test") -> str:
        return f"mAP {measures['map']:.4f}, micro-F1 {measures['micro_f1']:.4f} on {rows:,} {split} rows"


def _is_binary(matrix: NDArray[Any]) -> bool:
    return matrix.dtype.kind in "biuf" and bool(matrix.size) and bool(np.isin(matrix, (0, 1)).all())


def _split(value: Any) -> list[str]:
    return [name for part in as_string(value).split(SEPARATOR) if (name := part.strip())]


def _from_text(column: NDArray[Any], names: Sequence[str], where: str) -> NDArray[np.int8]:
    numbers = {name: number for number, name in enumerate(names)}
    matrix = np.zeros((len(column), len(names)), np.int8)
    for row, value in enumerate(column):
        for name in _split(value):
            if name not in numbers:
                known = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
                raise KdistillError(f"{where} contains {name!r} in row {row} (expected one of the classes {known})")
            matrix[row, numbers[name]] = 1
    return matrix


def _unused(labels: NDArray[np.int8], names: Sequence[str], where: str) -> tuple[str, ...]:
    unused = [name for name, column in zip(names, labels.T, strict=True) if not (column == 1).any()]
    if not unused:
        return ()
    listed = ", ".join(unused[:5]) + ", ..." * (len(unused) > 5)
    return (f"{where}: no training row has {'the class' if len(unused) == 1 else 'the classes'} {listed}",)


TASK = MultiLabel()
