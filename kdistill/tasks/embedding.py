"""Embedding: the student learns the vectors of a teacher. Labels are optional classes, which only measure the vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.console import NumberFormat
from kdistill.evaluation import metrics
from kdistill.tasks import classification
from kdistill.tasks.labels import NO_LABEL, RawLabels, is_labeled
from kdistill.tasks.task import Column, Floats, Headline, Measures, Prediction, Task, Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Embedding(Task):
    """Outputs (rows, width) are vectors of any length. Labels (rows,) are class numbers, if the data has labels."""

    name = "embedding"
    metric = "cosine"
    headline = Headline("cosine", "cosine", NumberFormat(".4f"), NumberFormat(".4f"), lower_is_better=False)
    columns = (
        Column("cosine", "cosine", NumberFormat(".4f")),
        Column("neighbors", "neighbor_agreement", NumberFormat(".1%")),
        Column("probe", "probe_accuracy", NumberFormat(".2%")),
    )
    loss_title = "Distance to the teacher"
    closeness = Column("cosine", "cosine", NumberFormat(".5f"))
    needs_labels = False
    output = "embedding"
    picture = "vectors"
    unit = "value"
    hub_tasks: ClassVar[Mapping[str, str]] = {"image": "image-feature-extraction"}
    note = (
        "cosine: mean cosine similarity to the teacher's vectors, if the widths are equal\n"
        "neighbors: rows with the same nearest neighbor as with the teacher; probe: accuracy of a linear classifier"
    )

    def read_labels(
        self, train: RawLabels, test: RawLabels | None, class_names: Sequence[str]
    ) -> tuple[Vocabulary, NDArray[np.int64], NDArray[np.int64] | None]:
        if train.values is None:
            none = Vocabulary(0)
            return none, self.encode(train, none), None if test is None else self.encode(test, none)
        return classification.TASK.read_labels(train, test, class_names)

    def encode(self, labels: RawLabels, vocabulary: Vocabulary) -> NDArray[np.int64]:
        return classification.TASK.encode(labels, vocabulary)

    def label_type(self, outputs: int) -> tuple[tuple[int, ...], str]:
        return classification.TASK.label_type(outputs)

    def groups(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        return labels

    def predict(self, outputs: Floats) -> NDArray[np.int64]:
        return np.full(len(outputs), NO_LABEL)

    def describe_predictions(
        self, outputs: Floats, names: Sequence[str], *, probabilities: bool = False
    ) -> Sequence[Prediction]:
        return [Prediction("embedding", outputs)]

    def score(self, predictions: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
        return np.zeros(len(labels))

    def describe_score(self, score: float, labeled: int, outputs: int) -> str:
        return ""

    def draw(self, outputs: Floats, labels: NDArray[Any], names: Sequence[str], title: str) -> Figure:
        from kdistill.evaluation import figures

        return figures.vectors(outputs, labels, names, title)

    def measure(
        self, outputs: Iterable[Floats], labels: NDArray[Any], teacher_outputs: Iterable[Floats] | None = None
    ) -> Measures:
        vectors = np.concatenate(list(outputs))
        measures: Measures = {}
        if teacher_outputs is not None:
            of_teacher = np.concatenate(list(teacher_outputs))
            if of_teacher.shape == vectors.shape:
                measures["cosine"] = float(metrics.cosine_similarity(vectors, of_teacher).mean())
            measures["neighbor_agreement"] = metrics.neighbor_agreement(vectors, of_teacher)
        return measures

    def probe(
        self,
        train_outputs: Iterable[Floats],
        train_labels: NDArray[Any],
        outputs: Iterable[Floats],
        labels: NDArray[Any],
    ) -> Measures:
        if not (is_labeled(train_labels).any() and is_labeled(labels).any()):
            return {}
        vectors = [np.concatenate(list(blocks)) for blocks in (train_outputs, outputs)]
        return {"probe_accuracy": metrics.probe_accuracy(vectors[0], train_labels, vectors[1], labels)}

    def describe(self, measures: Mapping[str, Any], rows: int, split: str = "test") -> str:
        if "cosine" in measures:
            return f"mean cosine {measures['cosine']:.4f} to the teacher on {rows:,} {split} rows"
        return f"{rows:,} {split} rows, not compared with the teacher"


TASK = Embedding()
