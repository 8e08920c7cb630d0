"""A report on classification: calibration, dark knowledge, and the rows that changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.console import Table
from kdistill.evaluation import metrics
from kdistill.evaluation.intervals import Estimate, wilson
from kdistill.soft_targets import SoftTargets
from kdistill.stages.dark_knowledge import examples_of
from kdistill.stages.report.changes import change_table, changed_rows
from kdistill.stages.report.diagrams import reliability
from kdistill.stages.report.html import Content, Html, Section, element, missing, paragraphs, table
from kdistill.stages.report.pictures import picture
from kdistill.stages.report.task_report import Compared, Material, TaskReport, are_paired
from kdistill.tasks import Column


class ClassificationReport(TaskReport):
    """Keeps the class that each network predicts for each test row, and its probability."""

    better = "is the only one that is correct"
    most_rows = 24

    def keep(self, outputs: NDArray[Any]) -> Sequence[NDArray[Any]]:
        return outputs.argmax(axis=1), metrics.confidence(outputs)

    def headline(self, compared: Sequence[Compared]) -> str:
        *others, last = compared
        count = last.measurement.measures["errors"]
        text = (
            f"The {last.title.lower()} makes {count:,} error{'s' * (count != 1)} on {last.measurement.rows:,} test rows"
        )
        if not others:
            return f"{text}."
        whose = "the same network from hard labels" if are_paired(compared) else "its teacher"
        return f"{text}; {whose} makes {others[-1].measurement.measures['errors']:,}."

    def with_intervals(self, material: Material, compared: Sequence[Compared]) -> list[Compared]:  # noqa: ARG002
        """Return the networks as they are: the logits are not kept, and the tiles have Wilson's interval."""
        return list(compared)

    def interval(self, each: Compared, main: Column) -> tuple[Estimate | None, str]:  # noqa: ARG002
        errors, rows = int(each.measurement.measures["errors"]), each.measurement.rows
        low, high = wilson(errors, rows)
        rate = errors / rows
        return Estimate(rate, rows, None, low, high), f"{rate:.2%} of test rows, 95% interval {low:.2%} to {high:.2%}"

    def scores(self, material: Material, each: Compared) -> NDArray[Any]:
        return _correct(material, each)

    def facts(self, material: Material) -> Iterator[tuple[str, Content]]:
        yield from super().facts(material)
        train = material.dataset.train
        counts = np.bincount(train.labels[train.labeled], minlength=material.dataset.classes)
        yield "Balance", f"{counts.min():,} to {counts.max():,} training rows per class"

    def label(self, material: Material, row: int) -> str:
        return str(material.dataset.class_names[material.dataset.test.labels[row]])

    def predicted(self, material: Material, each: Compared, row: int) -> str:
        return str(material.dataset.class_names[_predicted(each)[row]])

    def sections(self, material: Material, compared: Sequence[Compared]) -> Iterator[Section]:
        yield dark_knowledge(material)
        yield calibration(material, compared)
        tables = table(_classes(material, compared)), table(_confusions(material, compared))
        yield Section("rows", "Errors and changed rows", [*tables, changed_rows(self, material, compared)])


def _predicted(each: Compared) -> NDArray[np.int64]:
    """Return the predicted classes of the test rows, (rows,)."""
    return each.kept[0]


def _correct(material: Material, each: Compared) -> NDArray[np.bool_]:
    """Return which test rows a network classifies correctly, (rows,)."""
    return np.asarray(_predicted(each) == material.dataset.test.labels)


def calibration(material: Material, compared: Sequence[Compared]) -> Section:
    """Return the section with a reliability diagram per network."""
    drawn = (
        reliability(
            each,
            each.kept[1],
            _correct(material, each),
            ("confidence", "accuracy"),
            f"ECE {each.measurement.measures['ece']:.3f}, NLL {each.measurement.measures['nll']:.3f}",
        )
        for each in compared
    )
    return Section(
        "calibration",
        "Calibration",
        [
            paragraphs(
                "Each dot is a bin of test rows of similar confidence: its confidence against its accuracy. Its area shows "
                "the number of rows. Dots below the diagonal are overconfident. ECE is the mean distance to the diagonal."
            ),
            element("div", drawn, class_="diagrams"),
        ],
    )


def _classes(material: Material, compared: Sequence[Compared]) -> Table:
    labels, names = material.dataset.test.labels, material.dataset.class_names
    rows, *wrong = (
        np.bincount(labels[mask], minlength=len(names))
        for mask in [np.ones(len(labels), bool), *(~_correct(material, each) for each in compared)]
    )
    cases = [(name, f"{count:,}") for name, count in zip(names, rows, strict=True)]
    return change_table(compared, "errors per class", ("class", "test rows"), cases, np.array(wrong))


def _confusions(material: Material, compared: Sequence[Compared]) -> Table:
    labels, names = material.dataset.test.labels, material.dataset.class_names
    pairs = [(labels * len(names) + _predicted(each))[~_correct(material, each)] for each in compared]
    keys = np.unique(np.concatenate(pairs))
    cases = [(f"{names[label]} as {names[other]}",) for label, other in zip(*np.divmod(keys, len(names)), strict=True)]
    counts = np.array([np.bincount(np.searchsorted(keys, pair), minlength=len(keys)) for pair in pairs])
    return change_table(compared, "confusions", ("label as prediction",), cases, counts)


def dark_knowledge(material: Material) -> Section:
    """Return the section with some rows of the soft targets, at T = 1 and at the temperature of the file."""
    made_from = material.subject.manifest.input("soft_targets")
    name = made_from.name if made_from else next((each.name for each in material.of_kind("soft targets")), None)
    soft = SoftTargets.open(material.workspace.soft_targets(name)) if name else None
    if soft is None:
        return Section("dark-knowledge", "Dark knowledge", missing("No soft targets yet", material.next_command()))
    from kdistill.evaluation import figures

    cards = []
    for example in examples_of(material.workspace, soft, material.dataset):
        order = figures.most_likely(example.logits, 10)
        scales = [metrics.softmax(example.logits, scale)[order] for scale in (1.0, soft.temperature)]
        label = "no label" if example.label is None else f"label {material.dataset.class_names[example.label]}"
        rows = (
            element(
                "tr",
                element("th", material.dataset.class_names[place], scope="row"),
                (_bar(values[number], values.max()) for values in scales),
                class_="label" if place == example.label else None,
            )
            for number, place in enumerate(order)
        )
        heads = (element("th", head, scope="col") for head in ("class", "T = 1", f"T = {soft.temperature:g}"))
        cards.append(
            element(
                "li",
                picture(example.image, f"A row with {label}", lines=example.lines),
                element(
                    "table", element("caption", label), element("thead", element("tr", heads)), element("tbody", rows)
                ),
            )
        )
    return Section(
        "dark-knowledge",
        "Dark knowledge",
        [
            paragraphs(
                f"What the teacher says about some rows of {name}: its probabilities at T = 1 and at "
                f"T = {soft.temperature:g}. The longest bar of each column is the largest probability."
            ),
            element("ul", cards, class_="cards"),
        ],
    )


def _bar(value: float, largest: float) -> Html:
    bar = element("span", class_="bar", style=f"width:{100 * value / largest:.1f}%", aria_hidden="true")
    return element("td", bar, element("span", f"{value:.3f}"))
