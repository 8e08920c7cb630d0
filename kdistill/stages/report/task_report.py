"""What a report says about a task: the base, which all tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.console import Table
from kdistill.errors import KdistillError
from kdistill.evaluation.intervals import Estimate, mcnemar
from kdistill.evaluation.jackknife import LeftOut, jackknife
from kdistill.settings import TASKS
from kdistill.stages import sweep_report
from kdistill.stages.evaluate import EvaluateResult, short_count
from kdistill.stages.measurement import Measurement, NetworkToMeasure
from kdistill.stages.report.html import Content, Html, Section, element, missing, paragraphs, table
from kdistill.stages.report.subject import Subject
from kdistill.tasks import Column, Measures
from kdistill.workspace import Artifact, Manifest, Workspace, commands
from kdistill.workspace.staleness import Staleness

MOST_NAMES = 20
TITLES = {"teacher": "Teacher", "hard": "Hard-label student", "distilled": "Distilled student"}


@dataclass(frozen=True)
class Material:
    """What a report is made from.

    Attributes:
        workspace: where the artifacts are.
        subject: the networks that are compared.
        artifacts: all artifacts that were made from the dataset, upstream first, with their manifests.
        dataset: the dataset.
        digest: of the dataset.
        result: the measurements of all networks.
        look: at the staleness of the artifacts.
    """

    workspace: Workspace
    subject: Subject
    artifacts: Mapping[Artifact, Manifest]
    dataset: data.Dataset
    digest: str
    result: EvaluateResult
    look: Staleness

    def of_kind(self, *kinds: str) -> dict[Artifact, Manifest]:
        """Return the artifacts of some kinds with their manifests."""
        return {artifact: manifest for artifact, manifest in self.artifacts.items() if artifact.kind in kinds}

    def command(self, name: str, **values: Any) -> str:
        """Return a command line on the workspace."""
        return commands.command(self.workspace.root, name, **values)

    def next_command(self) -> str:
        """Return the next command on the way to a distilled student."""
        for soft, manifest in self.of_kind("soft targets").items():
            return commands.after_soften(self.workspace.root, soft.name, manifest.results)
        for teacher in self.of_kind("teacher"):
            return commands.after_teacher(self.workspace.root, teacher.name, self.dataset.task.name)
        return self.command("train-teacher", dataset=self.dataset.name)


@dataclass(frozen=True, eq=False)
class Compared:
    """A network that a report compares with others.

    Attributes:
        role: `teacher`, `hard` or `distilled`; also its class in the style sheet.
        measurement: of the test rows.
        kept: what `TaskReport.keep` returned, for all test rows.
        measures: its measures with their intervals over test rows, by name; only those that the report shows.
        change: the same for the difference of a distilled student to the student from hard labels.
    """

    role: str
    measurement: Measurement
    kept: Sequence[NDArray[Any]]
    measures: Mapping[str, Estimate] = field(default_factory=dict)
    change: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the report calls it."""
        return TITLES[self.role]


class TaskReport:
    """What a report says about a task. It sees the outputs of all networks while they are measured.

    This class is for tasks that need no special report. Others extend it, and are listed in `page.REPORTS`.

    Attributes:
        gain_title: the title of the section that compares the networks.
        better: what the better one of two students does on a row.
        most_rows: pictures of rows in a gallery.
    """

    gain_title: ClassVar[str] = "Gain over hard labels"
    better: ClassVar[str] = "is better"
    most_rows: ClassVar[int] = 12

    def __init__(self, subject: Subject) -> None:
        self._students = {student.name for student in subject.compared}
        self._blocks: dict[NetworkToMeasure, list[Sequence[NDArray[Any]]]] = {}

    def __call__(self, network: NetworkToMeasure, split: data.Split, outputs: NDArray[Any]) -> None:
        """Take a block of outputs (rows, outputs)."""
        if split.name == "test" and (network.role == "teacher" or network.name in self._students):
            self._blocks.setdefault(network, []).append(self.keep(outputs))

    def keep(self, outputs: NDArray[Any]) -> Sequence[NDArray[Any]]:
        """Return what the report needs of a block of outputs: arrays whose first axis is the rows."""
        return (outputs,)

    def compared(self, material: Material) -> list[Compared]:
        """Return the teacher, the student from hard labels and the distilled student, if there are such.

        Raises:
            KdistillError: if the network that the report is about was not measured.
        """
        subject = material.subject
        network = self._find(subject.network)
        if network is None:
            raise KdistillError(f"{subject.network} could not be measured: {subject.network.remedy}")
        hard = self._find(subject.hard) if subject.hard else None
        own = "distilled" if subject.distilled else {"teacher": "teacher", "student": "hard"}[subject.network.kind]
        roles = {network.teacher: "teacher", hard: "hard", network: own}
        found = [
            Compared(role, _test_rows(material, each), [np.concatenate(each) for each in zip(*blocks, strict=True)])
            for each, role in roles.items()
            if each and (blocks := self._blocks.get(each)) is not None
        ]
        return self.with_intervals(material, found)

    def with_intervals(self, material: Material, compared: Sequence[Compared]) -> list[Compared]:
        """Return the compared networks with their measures, by the jackknife over test rows."""
        rows = len(material.dataset.test)
        found = [jackknife(partial(self.measure, material, compared, each), rows) for each in compared]
        change: dict[str, LeftOut] = {}
        if are_paired(compared):
            change = {name: value - found[-2][name] for name, value in found[-1].items() if name in found[-2]}
        changes = [*[{}] * (len(found) - 1), change]
        return [
            replace(each, measures=_estimates(its), change=_estimates(differs))
            for each, its, differs in zip(compared, found, changes, strict=True)
        ]

    def measure(
        self, material: Material, compared: Sequence[Compared], each: Compared, mask: NDArray[np.bool_]
    ) -> Measures:
        """Return the measures of a network on the test rows that a mask selects."""
        has_teacher = compared[0].role == "teacher" and each is not compared[0]
        teacher_outputs = [compared[0].kept[0][mask]] if has_teacher else None
        return material.dataset.task.measure([each.kept[0][mask]], material.dataset.test.labels[mask], teacher_outputs)

    def scores(self, material: Material, each: Compared) -> NDArray[Any]:
        """Return how good the predictions of a network are, (rows,); higher is better."""
        task, test = material.dataset.task, material.dataset.test
        return task.score(task.predict(each.kept[0]), test.labels)

    def changes(self, material: Material, compared: Sequence[Compared]) -> NDArray[np.float64]:
        """Return by how much the distilled student is better than the student from hard labels, (rows,)."""
        before, after = (self.scores(material, each).astype(np.float64) for each in compared[-2:])
        return after - before

    def _find(self, artifact: Artifact) -> NetworkToMeasure | None:
        return next((each for each in self._blocks if (each.name, each.role) == (artifact.name, artifact.kind)), None)

    def label(self, material: Material, row: int) -> str:
        """Return the label of a test row for people."""
        raise NotImplementedError

    def predicted(self, material: Material, each: Compared, row: int) -> str:
        """Return what a network predicts for a test row, for people."""
        raise NotImplementedError

    def headline(self, compared: Sequence[Compared]) -> str:
        """Return the main result in a sentence."""
        main = _main(compared[-1])
        *others, last = _with_measure(compared, main)
        text = f"The {last.title.lower()} has {main.head} {_value(last, main)} on {last.measurement.rows:,} test rows"
        if not others:
            return f"{text}."
        whose = "the same network from hard labels" if are_paired(compared) else "its teacher"
        return f"{text}; {whose} has {_value(others[-1], main)}."

    def interval(self, each: Compared, main: Column) -> tuple[Estimate | None, str]:
        """Return the interval of a network that its tile draws, and the line below it."""
        found = each.measures.get(main.measure)
        if found is None or found.low is None or found.high is None:
            return None, ""
        return found, f"95% interval {main(found.low)} to {main(found.high)}"

    def tiles(self, compared: Sequence[Compared]) -> Html:
        """Return the compared networks side by side, with their intervals on one scale."""
        main = _main(compared[-1])
        shown = _with_measure(compared, main)
        intervals = [self.interval(each, main) for each in shown]
        scale = 1.05 * max((found.high or 0.0 for found, _ in intervals if found), default=1.0)
        tiles = (_tile(each, main, *pair, scale) for each, pair in zip(shown, intervals, strict=True))
        return element("ul", tiles, class_="tiles")

    def facts(self, material: Material) -> Iterator[tuple[str, Content]]:
        """Yield facts about the labels of the data: terms and their descriptions."""
        dataset = material.dataset
        yield "Task", f"{dataset.task.name}: {TASKS[dataset.task.name].help}"
        if dataset.outputs:
            names = ", ".join(dataset.class_names[:MOST_NAMES]) + ", ..." * (dataset.classes > MOST_NAMES)
            yield dataset.task.plural.capitalize(), f"{dataset.classes:,}: {names}"

    def gain(self, material: Material, compared: Sequence[Compared]) -> Iterator[Content]:
        """Yield the comparison of the networks, and what is missing."""
        subject = material.subject
        if not subject.distilled:
            yield missing("No distilled student yet", material.next_command())
        elif not subject.hard and TASKS[material.dataset.task.name].hard_part:
            yield missing("No student with the same settings from hard labels yet", subject.hard_command())
        if any(each.measures for each in compared):
            yield table(_measures(material, compared))
        if are_paired(compared):
            change = self.changes(material, compared)
            gained, lost = int((change > 0).sum()), int((change < 0).sum())
            yield paragraphs(
                f"Both students have the same architecture, settings and seed. Of {len(change):,} test rows, the distilled "
                f"student {self.better} on {gained:,}, and the student from hard labels {self.better} on {lost:,}. If both "
                "were equally good, a difference at least as large would have probability "
                f"{mcnemar(gained, lost):.2g} (exact sign test). This holds for this seed; a sweep measures "
                "how much results differ between seeds."
            )

    def sections(self, material: Material, compared: Sequence[Compared]) -> Iterator[Section]:  # noqa: ARG002
        """Yield the sections that only this task has."""
        yield from ()


def are_paired(compared: Sequence[Compared]) -> bool:
    """Return whether the last two networks are a student from hard labels and a distilled one."""
    return [each.role for each in compared[-2:]] == ["hard", "distilled"]


def _estimates(found: Mapping[str, LeftOut]) -> dict[str, Estimate]:
    return {name: value.estimate for name, value in found.items()}


def _measures(material: Material, compared: Sequence[Compared]) -> Table:
    """Return a table of all measures with their intervals over test rows."""
    changes = [compared[-1].change] if are_paired(compared) else []
    rows = [
        (
            column.head,
            *(sweep_report.interval(each.measures.get(column.measure), column.number_format) for each in compared),
            *(sweep_report.interval(each.get(column.measure), column.number_format, signed=True) for each in changes),
        )
        for column in material.dataset.task.columns
        if any(column.measure in each.measures for each in compared)
    ]
    return Table(
        f"measures on {compared[-1].measurement.rows:,} test rows",
        ("measure", *(each.title for each in compared), *("difference to hard labels" for _ in changes)),
        rows,
        "in brackets: 95% interval, which says how much the measures of these networks would differ with other test rows",
    )


def _main(compared: Compared) -> Column:
    """Return the main measure of a network: that of the task, or the first one that is known."""
    task, measures = compared.measurement.task, compared.measurement.measures
    main = Column(task.headline.label, task.headline.measure, task.headline.number_format)
    return next((column for column in (main, *task.columns) if column.measure in measures), main)


def _with_measure(compared: Sequence[Compared], column: Column) -> Sequence[Compared]:
    """Return the networks for which a measure is known, and the last one in any case."""
    return [each for each in compared if column.measure in each.measurement.measures or each is compared[-1]]


def _value(compared: Compared, column: Column) -> str:
    value = compared.measurement.measures.get(column.measure)
    return "unknown" if value is None else column(value)


def _test_rows(material: Material, network: NetworkToMeasure) -> Measurement:
    return next(
        each
        for each in material.result.measurements
        if (each.name, each.role, each.split) == (network.name, network.role, "test")
    )


def _tile(compared: Compared, main: Column, interval: Estimate | None, line: str, scale: float) -> Html:
    each = compared.measurement
    size = [f"{short_count(each.parameters)} parameters"] if each.parameters else []
    size += [f"{short_count(each.bytes)}B"] if each.bytes else []
    track = None
    if interval:
        ends = (interval.low, interval.mean, interval.high)
        start, middle, end = (100 * max(0.0, place or 0.0) / scale for place in ends)
        track = element(
            "div",
            element("span", class_="range", style=f"left:{start:.2f}%;width:{end - start:.2f}%"),
            element("span", class_="dot", style=f"left:{middle:.2f}%"),
            class_="track",
            aria_hidden="true",
        )
    return element(
        "li",
        element("p", compared.title, class_="role"),
        element("p", element("strong", _value(compared, main)), f" {main.head}", class_="number"),
        track,
        paragraphs(line) if line else None,
        element("p", ", ".join([each.name, *size]), class_="note"),
        class_=compared.role,
    )
