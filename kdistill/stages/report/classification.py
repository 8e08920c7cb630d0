"""Sections of a report for classes: the headline, calibration, dark knowledge, and which rows changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.console import Table
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.evaluation.intervals import mcnemar, wilson
from kdistill.evaluation.sweeps import Summary
from kdistill.soft_targets import SoftTargets
from kdistill.stages.dark_knowledge import examples_of, table_columns
from kdistill.stages.evaluate import short_count
from kdistill.stages.measurement import Measurement, NetworkToMeasure
from kdistill.stages.report.general import Material
from kdistill.stages.report.html import Content, Html, Section, element, join, missing, paragraphs, table
from kdistill.stages.report.pictures import picture
from kdistill.workspace import Artifact

MOST_ROWS = 24  # pictures of rows in a gallery
MOST_CASES = 20  # classes or pairs of classes in a table
PLOT = 200  # size of a reliability diagram, in the units of its coordinates


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a network predicts for the test rows.

    Attributes:
        role: `teacher`, `hard` or `distilled`; also its class in the style sheet.
        measurement: of the test rows.
        predicted: class numbers, (rows,).
        confidence: the largest probability, (rows,).
    """

    role: str
    measurement: Measurement
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def title(self) -> str:
        """What the report calls it."""
        return {"teacher": "Teacher", "hard": "Hard-label student", "distilled": "Distilled student"}[self.role]


class Outcomes:
    """Collects what the networks predict for the test rows, while they are measured."""

    def __init__(self) -> None:
        self._blocks: dict[NetworkToMeasure, list[tuple[NDArray[Any], ...]]] = {}

    def __call__(self, network: NetworkToMeasure, split: data.Split, logits: NDArray[Any]) -> None:
        """Take a block of logits (rows, classes)."""
        if split.name == "test":
            self._blocks.setdefault(network, []).append((logits.argmax(axis=1), metrics.confidence(logits)))

    def compared(self, material: Material) -> list[Outcome]:
        """Return the outcomes of the teacher, the student from hard labels and the distilled student, if there are such.

        Raises:
            KdistillError: if the network that the report is about was not measured.
        """
        subject = material.subject
        found = self._find(subject.network.name, subject.network.kind)
        if found is None:
            raise KdistillError(f"{subject.network} could not be measured: {subject.network.remedy}")
        hard = self._find(subject.hard.name, "student") if subject.hard else None
        role = "distilled" if subject.distilled else {"teacher": "teacher", "student": "hard"}[subject.network.kind]
        roles = {found.teacher: "teacher", hard: "hard", found: role}
        return [self._outcome(material, network, role) for network, role in roles.items() if network in self._blocks]

    def _find(self, name: str, role: str) -> NetworkToMeasure | None:
        return next((network for network in self._blocks if (network.name, network.role) == (name, role)), None)

    def _outcome(self, material: Material, network: NetworkToMeasure | None, role: str) -> Outcome:
        assert network is not None
        measured = next(
            each
            for each in material.result.measurements
            if (each.name, each.role, each.split) == (network.name, network.role, "test")
        )
        return Outcome(role, measured, *map(np.concatenate, zip(*self._blocks[network], strict=True)))


def headline(material: Material, compared: Sequence[Outcome]) -> str:
    """Return the main result in a sentence."""
    *others, last = compared
    rows = f"{last.measurement.rows:,} test rows"
    text = f"The {last.title.lower()} makes {_errors(last)} on {rows}"
    if material.subject.hard:
        return f"{text}; the same network from hard labels makes {others[-1].measurement.errors:,}."
    return f"{text}; its teacher makes {others[-1].measurement.errors:,}." if others else f"{text}."


def _errors(outcome: Outcome) -> str:
    count = outcome.measurement.errors
    return f"{count:,} error{'s' * (count != 1)}"


def gain_over_seeds(sweep: Artifact, summary: Summary) -> str | None:
    """Return the gain of a sweep's setting in a sentence; None without an interval."""
    difference = summary.difference
    if difference is None or difference.low is None or difference.high is None:
        return None
    more = "fewer" if difference.mean < 0 else "more"
    verdict = (
        "The interval contains 0, so the difference may be chance." if difference.low <= 0 <= difference.high else ""
    )
    return (
        f"In {sweep}, over {difference.n} seeds, {data.short_name(summary.model)} at {summary} makes {abs(difference.mean):,.1f} {more} "
        f"errors than from hard labels (difference {difference.mean:+,.1f}, 95% interval {difference.low:+,.1f} to "
        f"{difference.high:+,.1f}). {verdict}"
    ).strip()


def tiles(compared: Sequence[Outcome]) -> Html:
    """Return the compared networks side by side, with their error rates on one scale."""
    intervals = [wilson(each.measurement.errors, each.measurement.rows) for each in compared]
    scale = max(high for _, high in intervals) * 1.05
    return element(
        "ul",
        (_tile(outcome, *interval, scale) for outcome, interval in zip(compared, intervals, strict=True)),
        class_="tiles",
    )


def _tile(outcome: Outcome, low: float, high: float, scale: float) -> Html:
    each = outcome.measurement
    start, middle, end = (100 * value / scale for value in (low, each.error_rate, high))
    size = [f"{short_count(each.parameters)} parameters"] if each.parameters else []
    size += [f"{short_count(each.bytes)}B"] if each.bytes else []
    return element(
        "li",
        element("p", outcome.title, class_="role"),
        element("p", element("strong", f"{each.errors:,}"), f" error{'s' * (each.errors != 1)}", class_="number"),
        element(
            "div",
            element("span", class_="range", style=f"left:{start:.2f}%;width:{end - start:.2f}%"),
            element("span", class_="dot", style=f"left:{middle:.2f}%"),
            class_="track",
            aria_hidden="true",
        ),
        paragraphs(f"{each.error_rate:.2%} of test rows, 95% interval {low:.2%} to {high:.2%}"),
        paragraphs(", ".join([each.name, *size]), class_="note"),
        class_=outcome.role,
    )


def facts(material: Material) -> Iterator[tuple[str, Content]]:
    """Yield facts about the classes of the data: terms and their descriptions."""
    dataset = material.dataset
    counts = np.bincount(dataset.train.labels[dataset.train.labels != data.NO_LABEL], minlength=dataset.classes)
    shown = ", ".join(dataset.class_names[:MOST_CASES]) + ", ..." * (dataset.classes > MOST_CASES)
    yield "Classes", f"{dataset.classes:,}: {shown}"
    yield "Balance", f"{counts.min():,} to {counts.max():,} training rows per class"


def gain(material: Material, compared: Sequence[Outcome]) -> Iterator[Content]:
    """Yield the comparison of the distilled student with the one from hard labels, row by row."""
    subject = material.subject
    if not subject.hard:
        if subject.distilled:
            yield missing("No student with the same settings from hard labels yet", subject.hard_command())
        else:
            yield missing("No distilled student yet", material.next_command())
        return
    hard, distilled = compared[-2:]
    gained, lost = (mask.sum() for mask in _changes(material, hard, distilled))
    p = mcnemar(int(gained), int(lost))
    yield paragraphs(
        f"Both students have the same architecture, settings and seed. Of {hard.measurement.rows:,} test rows, only the "
        f"distilled student is correct on {gained:,}, and only the student from hard labels on {lost:,}. If both were "
        f"equally good, a difference at least as large would have probability {p:.2g} (exact McNemar test). This holds "
        "for this seed; a sweep measures how much results differ between seeds."
    )


def _changes(material: Material, hard: Outcome, distilled: Outcome) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which test rows only the distilled student classifies correctly, and which only the other one."""
    before, after = (each.predicted == material.dataset.test.labels for each in (hard, distilled))
    return after & ~before, before & ~after


def calibration(material: Material, compared: Sequence[Outcome]) -> Section:
    """Return the section with a reliability diagram per network."""
    diagrams = (_reliability(outcome, outcome.predicted == material.dataset.test.labels) for outcome in compared)
    return Section(
        "calibration",
        "Calibration",
        [
            paragraphs(
                "Each dot is a bin of test rows of similar confidence: its confidence against its accuracy. Its area shows "
                "the number of rows. Dots below the diagonal are overconfident. ECE is the mean distance to the diagonal."
            ),
            element("div", diagrams, class_="diagrams"),
        ],
    )


def _reliability(outcome: Outcome, correct: NDArray[np.bool_]) -> Html:
    bins = [each for each in zip(*metrics.reliability(outcome.confidence, correct), strict=True) if each[0]]
    each, lines, dots = outcome.measurement, [], []
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
            class_=outcome.role,
        ),
        element("figcaption", f"{outcome.title} ({each.name}): ECE {each.ece:.3f}, NLL {each.nll:.3f}"),
    )


def changed_rows(material: Material, compared: Sequence[Outcome]) -> Section:
    """Return the section with errors per class, confusions, and the rows that distillation gained and lost."""
    content: list[Content] = [table(_classes(material, compared)), table(_confusions(material, compared))]
    if material.subject.hard:
        gained, lost = _changes(material, *compared[-2:])
        for title, mask in (
            ("Gained: rows that only the distilled student classifies correctly", gained),
            ("Lost: rows that only the student from hard labels classifies correctly", lost),
        ):
            content.append(element("h3", title))
            content.append(_gallery(material, compared, mask))
    return Section("rows", "Errors and changed rows", content)


def _classes(material: Material, compared: Sequence[Outcome]) -> Table:
    labels, names = material.dataset.test.labels, material.dataset.class_names
    rows, *wrong = (
        np.bincount(labels[mask], minlength=len(names))
        for mask in [np.ones(len(labels), bool), *(each.predicted != labels for each in compared)]
    )
    cases = [(name, f"{count:,}") for name, count in zip(names, rows, strict=True)]
    return _counts(material, compared, "errors per class", ("class", "test rows"), cases, np.array(wrong))


def _confusions(material: Material, compared: Sequence[Outcome]) -> Table:
    labels, names = material.dataset.test.labels, material.dataset.class_names
    pairs = [(labels * len(names) + each.predicted)[each.predicted != labels] for each in compared]
    keys = np.unique(np.concatenate(pairs))
    cases = [(f"{names[label]} as {names[other]}",) for label, other in zip(*np.divmod(keys, len(names)), strict=True)]
    counts = np.array([np.bincount(np.searchsorted(keys, pair), minlength=len(keys)) for pair in pairs])
    return _counts(material, compared, "confusions", ("label as prediction",), cases, counts)


def _counts(
    material: Material,
    compared: Sequence[Outcome],
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


def _gallery(material: Material, compared: Sequence[Outcome], mask: NDArray[np.bool_]) -> Content:
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
        said = [f"{each.role}: {names[each.predicted[place]]}" for each in compared]
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
