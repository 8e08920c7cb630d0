"""A report on classification: calibration, dark knowledge, and the rows that changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.console import Table
from kdistill.evaluation import metrics
from kdistill.evaluation.intervals import mcnemar, wilson
from kdistill.soft_targets import SoftTargets
from kdistill.stages.dark_knowledge import examples_of, table_columns
from kdistill.stages.measurement import Measurement
from kdistill.stages.report.html import Content, Html, Section, element, join, missing, paragraphs, table
from kdistill.stages.report.pictures import picture
from kdistill.stages.report.task_report import Compared, Material, TaskReport

MOST_ROWS = 24  # pictures of rows in a gallery
MOST_CASES = 20  # classes or pairs of classes in a table
PLOT = 200  # size of a reliability diagram, in the units of its coordinates


class ClassificationReport(TaskReport):
    """Keeps the class that each network predicts for each test row, and its probability."""

    def keep(self, outputs: NDArray[Any]) -> Sequence[NDArray[Any]]:
        return outputs.argmax(axis=1), metrics.confidence(outputs)

    def headline(self, material: Material, compared: Sequence[Compared]) -> str:
        *others, last = compared
        count = last.measurement.measures["errors"]
        text = (
            f"The {last.title.lower()} makes {count:,} error{'s' * (count != 1)} on {last.measurement.rows:,} test rows"
        )
        if not others:
            return f"{text}."
        whose = "the same network from hard labels" if material.subject.hard else "its teacher"
        return f"{text}; {whose} makes {others[-1].measurement.measures['errors']:,}."

    def interval(self, measurement: Measurement) -> tuple[float, float, float]:
        errors = int(measurement.measures["errors"])
        low, high = wilson(errors, measurement.rows)
        return low, errors / measurement.rows, high

    def facts(self, material: Material) -> Iterator[tuple[str, Content]]:
        yield from super().facts(material)
        train = material.dataset.train
        counts = np.bincount(train.labels[train.labeled], minlength=material.dataset.classes)
        yield "Balance", f"{counts.min():,} to {counts.max():,} training rows per class"

    def gain(self, material: Material, compared: Sequence[Compared]) -> Iterator[Content]:
        yield from super().gain(material, compared)
        if material.subject.hard:
            gained, lost = (int(mask.sum()) for mask in _changes(material, compared))
            yield paragraphs(
                f"Both students have the same architecture, settings and seed. Of {compared[-1].measurement.rows:,} test "
                f"rows, only the distilled student is correct on {gained:,}, and only the student from hard labels on "
                f"{lost:,}. If both were equally good, a difference at least as large would have probability "
                f"{mcnemar(gained, lost):.2g} (exact McNemar test). This holds for this seed; a sweep measures how much "
                "results differ between seeds."
            )

    def sections(self, material: Material, compared: Sequence[Compared]) -> Iterator[Section]:
        yield dark_knowledge(material)
        yield calibration(material, compared)
        yield changed_rows(material, compared)


def _predicted(each: Compared) -> NDArray[np.int64]:
    """Return the predicted classes of the test rows, (rows,)."""
    return each.kept[0]


def _correct(material: Material, each: Compared) -> NDArray[np.bool_]:
    """Return which test rows a network classifies correctly, (rows,)."""
    return np.asarray(_predicted(each) == material.dataset.test.labels)


def _changes(material: Material, compared: Sequence[Compared]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which test rows only the distilled student classifies correctly, and which only the other one."""
    before, after = (_correct(material, each) for each in compared[-2:])
    return after & ~before, before & ~after


def calibration(material: Material, compared: Sequence[Compared]) -> Section:
    """Return the section with a reliability diagram per network."""
    return Section(
        "calibration",
        "Calibration",
        [
            paragraphs(
                "Each dot is a bin of test rows of similar confidence: its confidence against its accuracy. Its area shows "
                "the number of rows. Dots below the diagonal are overconfident. ECE is the mean distance to the diagonal."
            ),
            element("div", (_reliability(each, _correct(material, each)) for each in compared), class_="diagrams"),
        ],
    )


def _reliability(compared: Compared, correct: NDArray[np.bool_]) -> Html:
    bins = [each for each in zip(*metrics.reliability(compared.kept[1], correct), strict=True) if each[0]]
    each, lines, dots = compared.measurement, [], []
    for rows, confidence, accuracy in bins:
        x, y, diagonal = (round(PLOT * value, 1) for value in (confidence, 1 - accuracy, 1 - confidence))
        lines.append(element("line", x1=x, x2=x, y1=diagonal, y2=y, class_="gap"))
        dots.append(element("circle", cx=x, cy=y, r=round(3 + 15 * float(np.sqrt(rows / each.rows)), 1), class_="bin"))
    ticks = [
        element("text", f"{value:.0%}", x=x, y=y, text_anchor=anchor)
        for value in (0.0, 0.5, 1.0)
        for x, y, anchor in ((PLOT * value, PLOT + 18, "middle"), (-8, PLOT * (1 - value) + 4, "end"))
    ]
    described = "; ".join(f"{rows:,} rows: {100 * c:.0f}% confident, {100 * a:.0f}% correct" for rows, c, a in bins)
    return element(
        "figure",
        element(
            "svg",
            element("rect", width=PLOT, height=PLOT, class_="frame"),
            element("line", x1=0, y1=PLOT, x2=PLOT, y2=0, class_="diagonal"),
            join([*lines, *dots, *ticks]),
            element("text", "confidence", x=PLOT / 2, y=PLOT + 36, text_anchor="middle"),
            element("text", "accuracy", x=-PLOT / 2, y=-40, text_anchor="middle", transform="rotate(-90)"),
            viewBox=f"-54 -20 {PLOT + 76} {PLOT + 64}",
            role="img",
            aria_label=f"Reliability diagram of {each.name}. {described}.",
            class_=compared.role,
        ),
        element(
            "figcaption",
            f"{compared.title} ({each.name}): ECE {each.measures['ece']:.3f}, NLL {each.measures['nll']:.3f}",
        ),
    )


def changed_rows(material: Material, compared: Sequence[Compared]) -> Section:
    """Return the section with errors per class, confusions, and the rows that distillation gained and lost."""
    content: list[Content] = [table(_classes(material, compared)), table(_confusions(material, compared))]
    if material.subject.hard:
        gained, lost = _changes(material, compared)
        for title, mask in (
            ("Gained: rows that only the distilled student classifies correctly", gained),
            ("Lost: rows that only the student from hard labels classifies correctly", lost),
        ):
            content += [element("h3", title), _gallery(material, compared, mask)]
    return Section("rows", "Errors and changed rows", content)


def _classes(material: Material, compared: Sequence[Compared]) -> Table:
    labels, names = material.dataset.test.labels, material.dataset.class_names
    rows, *wrong = (
        np.bincount(labels[mask], minlength=len(names))
        for mask in [np.ones(len(labels), bool), *(~_correct(material, each) for each in compared)]
    )
    cases = [(name, f"{count:,}") for name, count in zip(names, rows, strict=True)]
    return _counts(material, compared, "errors per class", ("class", "test rows"), cases, np.array(wrong))


def _confusions(material: Material, compared: Sequence[Compared]) -> Table:
    labels, names = material.dataset.test.labels, material.dataset.class_names
    pairs = [(labels * len(names) + _predicted(each))[~_correct(material, each)] for each in compared]
    keys = np.unique(np.concatenate(pairs))
    cases = [(f"{names[label]} as {names[other]}",) for label, other in zip(*np.divmod(keys, len(names)), strict=True)]
    counts = np.array([np.bincount(np.searchsorted(keys, pair), minlength=len(keys)) for pair in pairs])
    return _counts(material, compared, "confusions", ("label as prediction",), cases, counts)


def _counts(
    material: Material,
    compared: Sequence[Compared],
    title: str,
    headings: Sequence[str],
    cases: Sequence[Sequence[str]],
    counts: NDArray[np.int64],
) -> Table:
    """Return a table of counts (networks, cases), of the cases that differ most between both students if there are many."""
    paired = material.subject.hard is not None
    change = counts[-1] - counts[-2] if paired else np.zeros_like(counts[-1])
    shown = np.sort(np.lexsort((-counts[-1], -np.abs(change)))[:MOST_CASES])
    rows = [
        (
            *cases[case],
            *(f"{count:,}" for count in counts[:, case]),
            *([f"{change[case]:+,}" if change[case] else "0"] if paired else []),
        )
        for case in shown
    ]
    columns = (*headings, *(each.title for each in compared), *(["change"] if paired else []))
    note = (
        f"the {MOST_CASES} of {len(cases):,} with the largest change or the most errors"
        if len(cases) > MOST_CASES
        else ""
    )
    return Table(title, columns, rows, note)


def _gallery(material: Material, compared: Sequence[Compared], mask: NDArray[np.bool_]) -> Content:
    """Return the pictures of the first rows that a mask selects, or their values, with what each network predicts."""
    places = np.flatnonzero(mask)
    if not len(places):
        return paragraphs("None.")
    first = np.zeros_like(mask)
    first[places[:MOST_ROWS]] = True
    names, labels = material.dataset.class_names, material.dataset.test.labels
    inputs = material.dataset.test.select(first).read()
    cards, columns = [], table_columns(material.dataset.preprocessing)
    for row, place in zip(inputs, places[:MOST_ROWS], strict=True):
        said = [f"{each.role}: {names[_predicted(each)[place]]}" for each in compared]
        label = names[labels[place]]
        cards.append(
            element(
                "li",
                picture(row, f"Test row {place}, label {label}", columns),
                element("p", "label ", element("strong", label), element("small", f", row {place:,}")),
                paragraphs(*said, class_="note"),
            )
        )
    more = f"The first {MOST_ROWS} of {len(places):,}." if len(places) > MOST_ROWS else None
    return [paragraphs(more, class_="note") if more else None, element("ul", cards, class_="gallery")]


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
