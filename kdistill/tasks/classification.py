"""Classification: each row has one class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.console import NumberFormat
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.tasks.labels import NO_LABEL, RawLabels, as_string, is_text
from kdistill.tasks.task import Column, Floats, Headline, Measures, Prediction, Task, Vocabulary

MAX_CLASSES = 1 << 20  # a larger label means damaged data, or numbers that are not classes
SUM_TOLERANCE = 1e-2  # probabilities in half precision do not sum to exactly 1
MOST_CONFUSED = 3  # classes that `per_class` names
MIN_TIMES_CHANCE = 2.0  # a teacher below this many times the accuracy of guessing is close to chance
MANY_CLASSES = 10_000  # more classes than this cause a warning


class Classification(Task):
    """Labels (rows,) are class numbers, outputs are logits, and soft targets are softmax(logits / T)."""

    name = "classification"
    metric = "accuracy"
    headline = Headline("errors", "errors", NumberFormat(",.0f"), NumberFormat(",.1f"))
    columns = (
        Column("errors", "errors", NumberFormat(",")),
        Column("rate", "error_rate", NumberFormat(".2%")),
        Column("NLL", "nll", NumberFormat(".3f")),
        Column("ECE", "ece", NumberFormat(".3f")),
        Column("Brier", "brier", NumberFormat(".3f")),
        Column("agree", "agreement", NumberFormat(".1%")),
        Column("KL", "kl_to_teacher", NumberFormat(".3f")),
    )
    loss_title = "Cross-entropy with the labels"
    closeness = Column("agree", "agreement", NumberFormat(".2%"))
    gap = "accuracy"
    categorical = True
    picture = "dark-knowledge"
    shows_rows = True
    hub_tasks: ClassVar[Mapping[str, str]] = {"table": "tabular-classification", "image": "image-classification"}
    note = "agree, KL: agreement with the teacher, KL(teacher || student) at T = 1; NLL and KL in nats"

    def read_labels(
        self, train: RawLabels, test: RawLabels | None, class_names: Sequence[str]
    ) -> tuple[Vocabulary, NDArray[np.int64], NDArray[np.int64] | None]:
        names = list(class_names)
        if _by_name(train) and not names:
            names = category_names(train.column())
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise KdistillError(f"{train.where}: class_names has {repeated[0]!r} twice (expected distinct names)")
        numbers = self.encode(train, Vocabulary(MAX_CLASSES, names))
        classes = max(len(names), int(numbers.max(initial=NO_LABEL)) + 1)
        if classes < 2:
            raise KdistillError(f"{train.where} contains a single class (expected two or more)")
        if names and len(names) < classes:
            raise KdistillError(f"{train.where}: class_names has {len(names)} names for {classes} classes")
        of_test = None if test is None else self.encode(test, Vocabulary(classes, names))
        used = np.union1d(numbers, () if of_test is None else of_test)
        warnings = class_warnings(classes, int((used != NO_LABEL).sum()), train.where)
        return Vocabulary(classes, names or tuple(map(str, range(classes))), warnings), numbers, of_test

    def encode(self, labels: RawLabels, vocabulary: Vocabulary) -> NDArray[np.int64]:
        if labels.values is None:
            return np.full(labels.rows, NO_LABEL, np.int64)
        if labels.columns != 1:
            raise KdistillError(f"{labels.where} has shape {labels.values.shape}: {explain_matrix(labels.values)}")
        values, where = labels.column(), labels.where
        if _by_name(labels):
            values = _number_names(values, vocabulary.names, where)
        if values.dtype.kind not in "iufb":
            raise KdistillError(f"{where} has type {values.dtype} (expected class numbers)")
        numbers = values.astype(np.float64)
        wrong = ~((numbers >= 0) & (numbers < MAX_CLASSES) & (numbers == np.floor(numbers)))  # true for NaN
        if wrong.any():
            row = int(np.argmax(wrong))
            raise KdistillError(
                f"{where} contains {values[row]} in row {row} (expected class numbers, integers from 0 to "
                f"{MAX_CLASSES - 1}; if the labels are quantities: --task regression)"
            )
        if numbers.max(initial=0) >= vocabulary.size:
            raise KdistillError(
                f"{where} contains the label {int(numbers.max())} (expected 0 to {vocabulary.size - 1}, the classes of the "
                "training rows)"
            )
        return values.astype(np.int64)

    def label_type(self, outputs: int) -> tuple[tuple[int, ...], str]:
        return (), "<i8"

    def groups(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        return labels

    def balanced_weights(self, labels: NDArray[Any]) -> NDArray[np.float32]:
        """Return rows / (classes * rows of the class), as scikit-learn's `class_weight="balanced"`."""
        known = labels != NO_LABEL
        counts = np.bincount(labels[known])
        weights = np.ones(len(labels), np.float32)
        weights[known] = known.sum() / (np.count_nonzero(counts) * counts[labels[known]])
        return weights

    def are_probabilities(self, outputs: Floats) -> bool:
        sums = outputs.sum(axis=1, dtype=np.float64)
        return bool((outputs >= 0).all() and np.allclose(sums, 1.0, atol=SUM_TOLERANCE))

    def from_probabilities(self, probabilities: Floats, zero_mass: float) -> Floats:
        """Return centered logarithms. No zero gets more than the smallest other probability of its row."""
        zero = probabilities == 0
        smallest = np.where(zero, np.inf, probabilities).min(axis=1, keepdims=True)
        floor = np.minimum(smallest, zero_mass / probabilities.shape[1])
        return centered(np.log(np.where(zero, floor, probabilities).astype(np.float32)))

    def average(self, outputs: Sequence[Floats], temperature: float) -> Floats:
        log_probabilities = np.stack([metrics.log_softmax(logits, temperature) for logits in outputs])
        peak = log_probabilities.max(axis=0)
        return centered(temperature * (peak + np.log(np.exp(log_probabilities - peak).mean(axis=0))))

    def activation(self, outputs: Floats, temperature: float) -> Floats:
        return metrics.softmax(outputs, temperature)

    def predict(self, outputs: Floats) -> NDArray[np.int64]:
        return np.asarray(outputs.argmax(axis=1))

    def describe_predictions(
        self, outputs: Floats, names: Sequence[str], *, probabilities: bool = False
    ) -> Sequence[Prediction]:
        each = metrics.softmax(outputs).astype(np.float32)
        named = np.array(names, object)[self.predict(outputs)]
        every = [Prediction("probabilities", each, names)] if probabilities else []
        return [Prediction("class", named), Prediction("probability", each.max(axis=1)), *every]

    def score(self, predictions: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(predictions == labels, np.float64)

    def describe_score(self, score: float, labeled: int, outputs: int) -> str:
        return f"correct on {score:,.0f} of {labeled:,} ({score / labeled:.2%})"

    def is_close_to_chance(self, score: float, labeled: int, outputs: int) -> bool:
        return score / labeled < min(MIN_TIMES_CHANCE / outputs, 0.5)

    def is_faultless(self, score: float, labeled: int) -> bool:
        return score >= labeled

    def measure(
        self, outputs: Iterable[Floats], labels: NDArray[Any], teacher_outputs: Iterable[Floats] | None = None
    ) -> Measures:
        """Return the measures of `metrics`. Memory holds a few numbers per row, whatever the number of classes."""
        blocks: list[list[NDArray[Any]]] = []
        start = 0
        pairs: Iterable[tuple[Floats, Floats | None]]
        pairs = zip(outputs, repeat(None)) if teacher_outputs is None else zip(outputs, teacher_outputs, strict=True)
        for logits, teacher_logits in pairs:
            block_labels = labels[start : start + len(logits)]
            start += len(logits)
            columns = [
                metrics.confidence(logits),
                logits.argmax(axis=1) == block_labels,
                metrics.negative_log_likelihood(logits, block_labels),
                metrics.brier_score(logits, block_labels),
            ]
            if teacher_logits is not None:
                columns += [metrics.agreement(logits, teacher_logits), metrics.kl_divergence(teacher_logits, logits)]
            blocks.append(columns)
        confidence, correct, nll, brier, *of_teacher = map(np.concatenate, zip(*blocks, strict=True))
        errors = int((~correct).sum())
        measures: Measures = {
            "errors": errors,
            "error_rate": errors / len(correct),
            "accuracy": 1 - errors / len(correct),
            "nll": float(nll.mean()),
            "ece": metrics.expected_calibration_error(confidence, correct),
            "brier": float(brier.mean()),
        }
        if of_teacher:
            measures |= dict(
                zip(("agreement", "kl_to_teacher"), (float(each.mean()) for each in of_teacher), strict=True)
            )
        return measures

    def per_class(self, outputs: Floats, labels: NDArray[Any], names: Sequence[str]) -> list[dict[str, Any]]:
        known = labels != NO_LABEL
        classes = len(names)
        confusion = np.zeros((classes, classes), np.int64)  # by label and prediction
        np.add.at(confusion, (labels[known], outputs.argmax(axis=1)[known]), 1)
        right, actual, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        return [
            {
                "class": names[number],
                "rows": int(actual[number]),
                "errors": int(actual[number] - right[number]),
                "recall": _ratio(right[number], actual[number]),
                "precision": _ratio(right[number], predicted[number]),
                "F1": _ratio(2 * right[number], actual[number] + predicted[number]),
                "taken for": _most_frequent(confusion[number], number, names),
            }
            for number in range(classes)
        ]

    def describe(self, measures: Mapping[str, Any], rows: int, split: str = "test") -> str:
        return f"{measures['errors']:,} of {rows:,} {split} rows wrong ({measures['errors'] / rows:.2%})"


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _most_frequent(counts: NDArray[np.int64], own: int, names: Sequence[str]) -> str:
    """Return the wrong classes that rows of a class are taken for, with how often, the most frequent first."""
    order = [number for number in np.argsort(-counts, kind="stable") if number != own and counts[number]]
    return ", ".join(f"{names[number]} ({counts[number]:,})" for number in order[:MOST_CONFUSED])


def centered(logits: Floats) -> NDArray[np.float32]:
    """Shift each row of logits to a mean of 0, which leaves the probabilities as they are.

    Logarithms of probabilities are far below 0, by T * log(classes) or more, and a student that matches logits would learn
    little else.
    """
    return np.asarray(logits - logits.mean(axis=-1, keepdims=True), np.float32)


def _by_name(labels: RawLabels) -> bool:
    return labels.by_name or (labels.values is not None and is_text(labels.values))


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


def explain_matrix(labels: NDArray[Any]) -> str:
    """Explain what is wrong with several values per row, (rows, ...)."""
    flat = labels.reshape(len(labels), -1)
    if flat.size and flat.dtype.kind in "biuf" and np.isin(flat, (0, 1)).all():
        if (flat.astype(bool).sum(axis=1) == 1).all():
            return "convert one-hot labels to class numbers with labels.argmax(axis=1)"
        return "for several classes per row, pass --task multi-label"
    return "expected one class per row, shape (rows,)"


def class_warnings(classes: int, used: int, where: str) -> tuple[str, ...]:
    """Return a warning if there are very many classes, or if most of them are unused."""
    if classes <= MANY_CLASSES and classes <= 2 * used:
        return ()
    fix = ": store numpy.unique(labels, return_inverse=True)[1] to number only the used ones" if used < classes else ""
    return (f"{where} has {classes:,} classes, {used:,} of them used, and networks have an output for each class{fix}",)


TASK = Classification()
