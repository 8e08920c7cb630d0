"""What a report says about a task: the base, which all tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.errors import KdistillError
from kdistill.settings import TASKS
from kdistill.stages.evaluate import EvaluateResult, short_count
from kdistill.stages.measurement import Measurement, NetworkToMeasure
from kdistill.stages.report.html import Content, Html, Section, element, missing, paragraphs
from kdistill.stages.report.subject import Subject
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
    """

    role: str
    measurement: Measurement
    kept: Sequence[NDArray[Any]]

    @property
    def title(self) -> str:
        """What the report calls it."""
        return TITLES[self.role]


class TaskReport:
    """What a report says about a task. It sees the outputs of all networks while they are measured.

    This class is for tasks without a report of their own. Others extend it, and are listed in `page.REPORTS`.
    """

    def __init__(self) -> None:
        self._blocks: dict[NetworkToMeasure, list[Sequence[NDArray[Any]]]] = {}

    def __call__(self, network: NetworkToMeasure, split: data.Split, outputs: NDArray[Any]) -> None:
        """Take a block of outputs (rows, outputs)."""
        if split.name == "test":
            self._blocks.setdefault(network, []).append(self.keep(outputs))

    def keep(self, outputs: NDArray[Any]) -> Sequence[NDArray[Any]]:  # noqa: ARG002 - for other tasks
        """Return what the report needs of a block of outputs: arrays whose first axis is the rows."""
        return ()

    def compared(self, material: Material) -> list[Compared]:
        """Return the teacher, the student from hard labels and the distilled student, if there are such.

        Raises:
            KdistillError: if the network that the report is about was not measured.
        """
        subject = material.subject
        found = self._find(subject.network)
        if found is None:
            raise KdistillError(f"{subject.network} could not be measured: {subject.network.remedy}")
        hard = self._find(subject.hard) if subject.hard else None
        own = "distilled" if subject.distilled else {"teacher": "teacher", "student": "hard"}[subject.network.kind]
        roles = {found.teacher: "teacher", hard: "hard", found: own}
        return [
            Compared(role, _test_rows(material, network), [np.concatenate(each) for each in zip(*blocks, strict=True)])
            for network, role in roles.items()
            if network and (blocks := self._blocks.get(network)) is not None
        ]

    def _find(self, artifact: Artifact) -> NetworkToMeasure | None:
        return next((each for each in self._blocks if (each.name, each.role) == (artifact.name, artifact.kind)), None)

    def headline(self, material: Material, compared: Sequence[Compared]) -> str:
        """Return the main result in a sentence."""
        headline, subject = material.dataset.task.headline, material.subject
        *others, last = (_value(each.measurement) for each in compared)
        text = (
            f"The {compared[-1].title.lower()} has {headline.label} {last} on {len(material.dataset.test):,} test rows"
        )
        if not others:
            return f"{text}."
        return f"{text}; {'the same network from hard labels' if subject.hard else 'its teacher'} has {others[-1]}."

    def interval(self, measurement: Measurement) -> tuple[float, float, float] | None:  # noqa: ARG002
        """Return a rate with both ends of its 95% confidence interval; None if the measure has no such interval."""
        return None

    def tiles(self, material: Material, compared: Sequence[Compared]) -> Html:
        """Return the compared networks side by side, with their intervals on one scale."""
        intervals = [self.interval(each.measurement) for each in compared]
        scale = 1.05 * max((high for *_, high in filter(None, intervals)), default=1.0)
        tiles = (_tile(material, *pair, scale) for pair in zip(compared, intervals, strict=True))
        return element("ul", tiles, class_="tiles")

    def facts(self, material: Material) -> Iterator[tuple[str, Content]]:
        """Yield facts about the labels of the data: terms and their descriptions."""
        dataset = material.dataset
        yield "Task", f"{dataset.task.name}: {TASKS[dataset.task.name].help}"
        if dataset.outputs:
            names = ", ".join(dataset.class_names[:MOST_NAMES]) + ", ..." * (dataset.classes > MOST_NAMES)
            yield dataset.task.plural.capitalize(), f"{dataset.classes:,}: {names}"

    def gain(self, material: Material, compared: Sequence[Compared]) -> Iterator[Content]:  # noqa: ARG002
        """Yield the comparison of both students, or what is missing."""
        subject = material.subject
        if not subject.distilled:
            yield missing("No distilled student yet", material.next_command())
        elif not subject.hard and TASKS[material.dataset.task.name].hard_part:
            yield missing("No student with the same settings from hard labels yet", subject.hard_command())

    def sections(self, material: Material, compared: Sequence[Compared]) -> Iterator[Section]:  # noqa: ARG002
        """Yield the sections that only this task has."""
        yield from ()


def _value(measurement: Measurement) -> str:
    """Return the measure by which networks are compared; `unknown` e.g. without a teacher to compare with."""
    headline = measurement.task.headline
    value = measurement.measures.get(headline.measure)
    return "unknown" if value is None else headline(value)


def _test_rows(material: Material, network: NetworkToMeasure) -> Measurement:
    return next(
        each
        for each in material.result.measurements
        if (each.name, each.role, each.split) == (network.name, network.role, "test")
    )


def _tile(material: Material, compared: Compared, interval: tuple[float, float, float] | None, scale: float) -> Html:
    each, headline = compared.measurement, material.dataset.task.headline
    size = [f"{short_count(each.parameters)} parameters"] if each.parameters else []
    size += [f"{short_count(each.bytes)}B"] if each.bytes else []
    track, lines = None, []
    if interval:
        low, rate, high = interval
        start, middle, end = (100 * place / scale for place in interval)
        track = element(
            "div",
            element("span", class_="range", style=f"left:{start:.2f}%;width:{end - start:.2f}%"),
            element("span", class_="dot", style=f"left:{middle:.2f}%"),
            class_="track",
            aria_hidden="true",
        )
        lines = [f"{rate:.2%} of test rows, 95% interval {low:.2%} to {high:.2%}"]
    return element(
        "li",
        element("p", compared.title, class_="role"),
        element("p", element("strong", _value(each)), f" {headline.label}", class_="number"),
        track,
        paragraphs(*lines),
        element("p", ", ".join([each.name, *size]), class_="note"),
        class_=compared.role,
    )
