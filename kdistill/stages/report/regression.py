"""A report on regression: predicted against true numbers, errors, and the rows with the largest ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.console import Table, five_digits
from kdistill.evaluation import metrics
from kdistill.stages.report.changes import changed_rows
from kdistill.stages.report.diagrams import Axis, against, histograms
from kdistill.stages.report.html import Content, Section, element, paragraphs, table
from kdistill.stages.report.task_report import MOST_NAMES, Compared, Material, TaskReport

MOST_NUMBERS = 4  # of a row, that have diagrams
MOST_ERRORS = 15  # rows in a table


class RegressionReport(TaskReport):
    """Keeps the predicted numbers of the test rows, (rows, numbers)."""

    better = "has the smaller error"

    def facts(self, material: Material) -> Iterator[tuple[str, Content]]:
        yield from super().facts(material)
        labels = material.dataset.train.labels.astype(np.float64)
        for name, its in list(zip(material.dataset.class_names, labels.T, strict=True))[:MOST_NAMES]:
            low, high, mean, deviation = (f(its) for f in (np.nanmin, np.nanmax, np.nanmean, np.nanstd))
            spread = f"mean {five_digits(mean)}, standard deviation {five_digits(deviation)}"
            yield name, f"{five_digits(low)} to {five_digits(high)}, {spread} (training rows)"

    def scores(self, material: Material, each: Compared) -> NDArray[Any]:
        return np.asarray(-_relative_errors(material, each).mean(axis=1))

    def label(self, material: Material, row: int) -> str:
        return _numbers(material.dataset.test.labels[row])

    def predicted(self, material: Material, each: Compared, row: int) -> str:  # noqa: ARG002
        return _numbers(each.kept[0][row])

    def sections(self, material: Material, compared: Sequence[Compared]) -> Iterator[Section]:
        names = material.dataset.class_names
        content: list[Content] = [
            paragraphs(
                "In the first diagrams, each dot is a bin of test rows, and its area shows how many; on the diagonal, predicted "
                "and true numbers are equal. Errors are predicted minus true numbers. Diagrams of a kind have the same axes; a "
                "few rows outside them are drawn at their ends."
            )
        ]
        for number, name in enumerate(names[:MOST_NUMBERS]):
            if len(names) > 1:
                content.append(element("h3", name))
            content.append(_diagrams(material, compared, number))
        if len(names) > MOST_NUMBERS:
            content.append(paragraphs(f"The first {MOST_NUMBERS} of {len(names):,} numbers.", class_="note"))
        yield Section("predictions", "Predictions and errors", content)
        tables = [table(_largest(material, compared))]
        yield Section("rows", "Largest errors and changed rows", [*tables, changed_rows(self, material, compared)])


def _numbers(values: NDArray[np.floating[Any]]) -> str:
    return ", ".join(map(five_digits, values[:MOST_NUMBERS])) + ", ..." * (len(values) > MOST_NUMBERS)


def _diagrams(material: Material, compared: Sequence[Compared], number: int) -> Iterator[Content]:
    """Yield the diagrams of one number of a row."""
    labels = material.dataset.test.labels[:, number]
    known = ~np.isnan(labels)
    true, predicted = labels[known], [each.kept[0][known, number] for each in compared]
    ends = Axis.of(material.dataset.class_names[number], true, *predicted)
    drawn = []
    for each, its in zip(compared, predicted, strict=True):
        measures = metrics.regression_measures(its[:, np.newaxis], true[:, np.newaxis])
        caption = f"RMSE {five_digits(measures['rmse'])}, R^2 {measures['r2']:.4f}"
        drawn.append(against(each, true, its, ends, caption))
    yield element("div", drawn, class_="diagrams")
    errors = [its.astype(np.float64) - true for its in predicted]
    quartiles = [np.quantile(each, (0.25, 0.75)) for each in errors]
    captions = [
        f"mean error {five_digits(each.mean())}, middle half from {five_digits(low)} to {five_digits(high)}"
        for each, (low, high) in zip(errors, quartiles, strict=True)
    ]
    yield element("div", histograms(compared, errors, Axis.of("error", *errors), captions), class_="diagrams")


def _relative_errors(material: Material, each: Compared) -> NDArray[np.float64]:
    """Return absolute errors in standard deviations of the true numbers, (rows, numbers); 0 where there is no label."""
    labels = material.dataset.test.labels.astype(np.float64)
    deviation = np.nanstd(labels, axis=0)
    return np.nan_to_num(np.abs(each.kept[0] - labels) / np.where(deviation > 0, deviation, 1))


def _largest(material: Material, compared: Sequence[Compared]) -> Table:
    """Return a table of the rows with the largest relative errors of the last network."""
    labels, names = material.dataset.test.labels.astype(np.float64), material.dataset.class_names
    places = np.argsort(-_relative_errors(material, compared[-1]), axis=None, kind="stable")[:MOST_ERRORS]
    several = len(names) > 1
    rows = [
        (
            f"{row:,}",
            *([names[number]] if several else []),
            five_digits(labels[row, number]),
            *(five_digits(each.kept[0][row, number]) for each in compared),
            *(five_digits(each.kept[0][row, number] - labels[row, number], signed=True) for each in compared[-2:]),
        )
        for row, number in zip(*np.unravel_index(places, labels.shape), strict=True)
    ]
    headings = ("row", *(["number"] if several else []), "label", *(each.title for each in compared))
    whose = (f"error, {each.role}" for each in compared[-2:])
    return Table(f"largest errors of the {compared[-1].title.lower()}", (*headings, *whose), rows)
