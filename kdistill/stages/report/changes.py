"""What distillation changed: cases and rows where a distilled student differs from the student from hard labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.console import NumberFormat, Table
from kdistill.stages.dark_knowledge import table_columns
from kdistill.stages.report.html import Content, element, paragraphs
from kdistill.stages.report.pictures import picture
from kdistill.stages.report.task_report import Compared, Material, TaskReport, are_paired

MOST_CASES = 20  # e.g. classes in a table


def change_table(
    compared: Sequence[Compared],
    title: str,
    headings: Sequence[str],
    cases: Sequence[Sequence[str]],
    values: NDArray[Any],
    number_format: NumberFormat = NumberFormat(","),
) -> Table:
    """Return a table of a value per case and network, and the change between both students.

    Args:
        compared: the networks.
        title: of the table.
        headings: of the columns that describe a case.
        cases: what describes each case.
        values: (networks, cases); NaN if unknown. Of many cases, those that change most are shown.
        number_format: of a value.
    """
    paired = are_paired(compared)
    change = values[-1] - values[-2] if paired else np.zeros_like(values[-1])
    shown = np.sort(np.lexsort((-values[-1], -np.abs(change)))[:MOST_CASES])
    rows = [
        (
            *cases[case],
            *("" if np.isnan(value) else number_format(value) for value in values[:, case]),
            *([number_format(change[case], signed=True) if change[case] else "0"] if paired else []),
        )
        for case in shown
    ]
    columns = (*headings, *(each.title for each in compared), *(["change"] if paired else []))
    note = f"the {MOST_CASES} of {len(cases):,} with the largest change or values" if len(cases) > MOST_CASES else ""
    return Table(title, columns, rows, note)


def changed_rows(report: TaskReport, material: Material, compared: Sequence[Compared]) -> Iterator[Content]:
    """Yield the rows that distillation gained and those that it lost, if there are two students."""
    if are_paired(compared):
        change = report.changes(material, compared)
        for title, sign in (("Gained: the distilled student", 1), ("Lost: the student from hard labels", -1)):
            order = np.argsort(-sign * change, kind="stable")
            yield element("h3", f"{title} {report.better}")
            yield _gallery(report, material, compared, order[sign * change[order] > 0])


def _gallery(
    report: TaskReport, material: Material, compared: Sequence[Compared], rows: NDArray[np.int64]
) -> Iterator[Content]:
    """Yield the pictures of the first of some rows, or their values, with what each network predicts."""
    if not len(rows):
        yield paragraphs("None.")
        return
    if len(rows) > report.most_rows:
        yield paragraphs(f"The {report.most_rows} of {len(rows):,} rows with the largest change.", class_="note")
    columns = table_columns(material.dataset.preprocessing)
    cards = []
    for row, values in inputs_of(material, rows[: report.most_rows]):
        label = report.label(material, row)
        said = (f"{each.role}: {report.predicted(material, each, row)}" for each in compared)
        cards.append(
            element(
                "li",
                picture(values, f"Test row {row}, label {label}", columns),
                element("p", "label ", element("strong", label), element("small", f", row {row:,}")),
                paragraphs(*said, class_="note"),
            )
        )
    yield element("ul", cards, class_="gallery")


def inputs_of(material: Material, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the numbers of some distinct test rows with their inputs, in their order."""
    mask = np.zeros(len(material.dataset.test), bool)
    mask[rows] = True
    inputs = material.dataset.test.select(mask).read()
    for row in rows:
        yield int(row), inputs[np.count_nonzero(mask[:row])]
