"""A report on multi-label data: average precisions, calibration, and the labels that changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kdistill.console import NumberFormat, Table
from kdistill.evaluation import metrics
from kdistill.stages.report.changes import MOST_CASES, change_table, changed_rows
from kdistill.stages.report.diagrams import reliability
from kdistill.stages.report.html import Content, Section, element, paragraphs, table
from kdistill.stages.report.task_report import Compared, Material, TaskReport, are_paired
from kdistill.tasks import NO_LABEL


class MultiLabelReport(TaskReport):
    """Keeps the logits of the test rows, (rows, classes)."""

    better = "has more labels right"

    def facts(self, material: Material) -> Iterator[tuple[str, Content]]:
        yield from super().facts(material)
        train = material.dataset.train
        labels = train.labels[train.labeled]
        counts = (labels == 1).sum(axis=0)
        yield "Balance", f"{counts.min():,} to {counts.max():,} training rows per class"
        yield "Labels", f"{(labels == 1).sum(axis=1).mean():.2f} classes per training row"

    def label(self, material: Material, row: int) -> str:
        return _named(material, material.dataset.test.labels[row] == 1)

    def predicted(self, material: Material, each: Compared, row: int) -> str:
        return _named(material, each.kept[0][row] > 0)

    def sections(self, material: Material, compared: Sequence[Compared]) -> Iterator[Section]:
        yield calibration(material, compared)
        tables = [table(_precisions(material, compared))]
        if are_paired(compared):
            tables.append(table(_decisions(material, compared)))
        yield Section("rows", "Classes and changed rows", [*tables, changed_rows(self, material, compared)])


def _named(material: Material, mask: NDArray[np.bool_]) -> str:
    names = material.dataset.class_names
    return "; ".join(names[number] for number in np.flatnonzero(mask)) or "none"


def calibration(material: Material, compared: Sequence[Compared]) -> Section:
    """Return the section with a reliability diagram per network, over all decisions."""
    labels = material.dataset.test.labels
    known = labels != NO_LABEL
    drawn = []
    for each in compared:
        probabilities, positive = metrics.sigmoid(each.kept[0])[known], labels[known] == 1
        error = metrics.expected_calibration_error(probabilities, positive)
        axes = "probability", "rows with the class"
        drawn.append(reliability(each, probabilities, positive, axes, f"calibration error {error:.3f}"))
    return Section(
        "calibration",
        "Calibration",
        [
            paragraphs(
                f"A network decides about each class of each test row: {known.sum():,} decisions. Each dot is a bin of "
                "decisions of similar probability: the probability against how often the row has the class. Its area shows "
                "the number of decisions. The calibration error is the mean distance to the diagonal."
            ),
            element("div", drawn, class_="diagrams"),
        ],
    )


def _precisions(material: Material, compared: Sequence[Compared]) -> Table:
    labels, names = material.dataset.test.labels, material.dataset.class_names
    known, positives = labels != NO_LABEL, (labels == 1).sum(axis=0)
    cases = [(name, f"{count:,}") for name, count in zip(names, positives, strict=True)]
    values = np.array([metrics.average_precisions(each.kept[0], labels, known) for each in compared])
    return change_table(
        compared,
        "average precision per class",
        ("class", "test rows"),
        cases,
        values,
        number_format=NumberFormat(".3f"),
    )


def _decisions(material: Material, compared: Sequence[Compared]) -> Table:
    """Return a table of the decisions that only one of both students has right."""
    labels, names = material.dataset.test.labels, material.dataset.class_names
    before, after = ((each.kept[0] > 0) == (labels == 1) for each in compared[-2:])
    known = labels != NO_LABEL
    gained, lost = (after & ~before & known).sum(axis=0), (before & ~after & known).sum(axis=0)
    shown = np.sort(np.argsort(-np.abs(gained - lost), kind="stable")[:MOST_CASES])
    return Table(
        "labels gained and lost",
        ("class", "gained", "lost", "change"),
        [(names[n], f"{gained[n]:,}", f"{lost[n]:,}", f"{gained[n] - lost[n]:+,}") for n in shown],
        "gained: rows where only the distilled student is right about the class; lost: only the student from hard labels",
    )
