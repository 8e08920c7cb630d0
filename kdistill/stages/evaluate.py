"""`kdistill evaluate`: measure networks of the workspace on the training and test rows of their datasets."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdistill import data, teachers
from kdistill.console import Reporter, Table
from kdistill.errors import KdistillError
from kdistill.settings import NAME, Evaluate
from kdistill.soft_targets import SoftTargets
from kdistill.stages.common import select_networks, warn_if_stale
from kdistill.stages.inputs import recorded_dataset, staleness
from kdistill.stages.measurement import Measurement, NetworkToMeasure, Observer, measure
from kdistill.workspace import Artifact, Input, Manifest, Workspace, size

FEW = 100  # smaller numbers have three decimal places
GAP_NOTE = "gap: training accuracy minus test accuracy, in percentage points; all others: test rows only\n"


@dataclass(frozen=True)
class EvaluateResult:
    """The measurements of all networks: for each, one on the training rows, if these are known, and one on the test rows."""

    measurements: Sequence[Measurement]
    exit_status = 0

    def as_json(self) -> list[dict[str, object]]:
        """Return an object per network and split."""
        return [measurement.as_json() for measurement in self.measurements]

    def show(self, reporter: Reporter) -> None:
        """Print the tables."""
        for table in self.tables():
            reporter.table(*table)

    def tables(self) -> Iterator[Table]:
        """Yield for each task a row per network: measures on the test rows, and the gap to the training rows."""
        for task in dict.fromkeys(each.task for each in self.measurements):
            measured = [each for each in self.measurements if each.task is task]
            previous = [None, *measured[:-1]]
            test = [
                (before if before and before.split == "train" else None, each)
                for before, each in zip(previous, measured, strict=True)
                if each.split == "test"
            ]
            counts = sorted({each.rows for _, each in test})
            gap = ["gap"] if task.gap else []
            yield Table(
                f"test split, {' or '.join(f'{count:,}' for count in counts)} rows",
                ("network", "role", *(column.head for column in task.columns), *gap, "params", "size"),
                [_table_row(*pair) for pair in test],
                note=f"{GAP_NOTE * bool(gap)}{task.note}",
            )
            yield from (_per_class_table(each) for each in measured if each.per_class)


def _per_class_table(test: Measurement) -> Table:
    """Return the measures of each class as a table."""
    rows = [[_cell(value) for value in row.values()] for row in test.per_class or ()]
    return Table(f"{test.role} {test.name!r} by {test.task.unit}", list((test.per_class or [{}])[0]), rows)


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < FEW else f"{value:,.5g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def _table_row(train: Measurement | None, test: Measurement) -> Sequence[str]:
    values = [(column, test.measures.get(column.measure)) for column in test.task.columns]
    gap = test.task.gap
    return (
        test.name,
        test.role,
        *("" if value is None else column(value) for column, value in values),
        *(["" if train is None else f"{100 * (train.measures[gap] - test.measures[gap]):.2f}"] if gap else []),
        "" if test.parameters is None else short_count(test.parameters),
        "" if test.bytes is None else short_count(test.bytes) + "B",
    )


def short_count(count: int) -> str:
    """Return a number in short, e.g. 24.8k."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)


def run(workspace: Workspace, settings: Evaluate = Evaluate(), *, reporter: Reporter = Reporter()) -> EvaluateResult:
    """Measure networks, each on the training and test rows of the dataset that it was trained on.

    By default these are all teachers and students, and the external teachers and ensembles of the students. A teacher
    whose logits are in files is measured on the test rows only.

    Reads: `teachers/*/saved_model`, `students/*/saved_model`, the teachers of soft targets, and the datasets.
    Writes: nothing.

    Raises:
        KdistillError: If there is no such network, one is damaged, or none was trained on the dataset in the settings.
    """
    networks = select_networks(workspace, settings.networks, "evaluate")
    manifests = {network: network.require("saved_model") for network in networks}
    groups, available = _group_by_dataset(manifests, settings.data)
    look = staleness(workspace, available)
    for artifact, manifest in manifests.items():
        warn_if_stale(look, artifact, manifest, reporter)
    measurements: list[Measurement] = []
    with reporter.steps("evaluate", len(manifests)) as bar:
        for name, group in groups.items():
            try:
                dataset = data.resolve(name, cache=workspace.cache).load()
            except KdistillError as error:
                reporter.warn(f"skipped {', '.join(map(str, group))}: {error}")
                continue
            plan = _Plan(workspace, group, dataset)
            measurements += measure(plan.networks, dataset, reporter, bar, per_class=settings.per_class)
    if not measurements:
        raise KdistillError(f"no network of {workspace.root} could be evaluated")
    return EvaluateResult(measurements)


def measure_networks(
    workspace: Workspace,
    manifests: Mapping[Artifact, Manifest],
    dataset: data.Dataset,
    reporter: Reporter,
    observer: Observer,
) -> EvaluateResult:
    """Measure networks of one dataset, which is loaded already.

    Args:
        workspace: The workspace of the networks.
        manifests: The networks.
        dataset: Their dataset.
        reporter: Prints warnings and progress.
        observer: Is given the outputs.
    """
    with reporter.steps("evaluate", len(manifests)) as bar:
        plan = _Plan(workspace, manifests, dataset)
        return EvaluateResult(measure(plan.networks, dataset, reporter, bar, observer))


def _group_by_dataset(
    manifests: Mapping[Artifact, Manifest], dataset: str | None
) -> tuple[dict[str, dict[Artifact, Manifest]], set[str]]:
    """Group networks by the name of their dataset.

    Args:
        manifests: The networks.
        dataset: Where a dataset is now. It replaces every dataset with the same digest.

    Returns:
        The groups, and the digests of the datasets that `dataset` replaces.

    Raises:
        KdistillError: If `dataset` replaces none.
    """
    names: dict[Input, str] = {}
    mismatches: list[KdistillError] = []
    replaced: set[str] = set()
    groups: dict[str, dict[Artifact, Manifest]] = {}
    for artifact, manifest in manifests.items():
        made_from = manifest.require_input("dataset")
        if made_from not in names:
            names[made_from] = made_from.name
            if dataset is not None:
                try:
                    names[made_from] = recorded_dataset(made_from, dataset, artifact).name
                    replaced.add(made_from.digest)
                except KdistillError as error:
                    mismatches.append(error)
        groups.setdefault(names[made_from], {})[artifact] = manifest
    if mismatches and not replaced:
        raise mismatches[0]
    return groups, replaced


class _Plan:
    """The networks of one dataset that are to be measured, and the teachers that students are compared with."""

    def __init__(self, workspace: Workspace, manifests: Mapping[Artifact, Manifest], dataset: data.Dataset) -> None:
        self._workspace, self._manifests, self._dataset = workspace, manifests, dataset
        self._open = functools.cache(lambda name: SoftTargets.open(workspace.soft_targets(name)))
        self._entries: dict[str, NetworkToMeasure] = {}
        for artifact, manifest in manifests.items():
            self._add(artifact, manifest, self._teacher(manifest))

    @property
    def networks(self) -> list[NetworkToMeasure]:
        """All networks, teachers first."""
        return sorted(self._entries.values(), key=lambda entry: entry.role != "teacher")

    def _add(self, artifact: Artifact, manifest: Manifest, teacher: NetworkToMeasure | None) -> None:
        from kdistill.networks.loading import graph_digests

        saved_model = artifact.path / "saved_model"
        self._entries[str(artifact)] = NetworkToMeasure(
            artifact.name,
            artifact.kind,
            lambda loader: loader.load(artifact, manifest),
            graph_digests(saved_model),
            manifest.results["parameters"],
            size(saved_model),
            teacher,
        )

    def _teacher(self, manifest: Manifest) -> NetworkToMeasure | None:
        """Return the teacher of a student if it is unchanged since it made the student's soft targets."""
        if corrected := manifest.input("student"):  # its teacher is that of the student before the correction
            student = self._workspace.student(corrected.name).manifest()
            if student is None or student.outputs["saved_model"] != corrected.digest:
                return None
            manifest = student
        name = manifest.results.get("teacher")
        soft_targets = manifest.input("soft_targets")
        if not name or soft_targets is None:
            return None
        if NAME.fullmatch(name):
            return self._teacher_in_workspace(self._workspace.teacher(name), manifest)
        soft = self._open(soft_targets.name)
        if soft is None or soft.digest != soft_targets.digest:
            return None
        if name not in self._entries:
            members = " + ".join(Path(member).name for member in name.split(", "))
            load = functools.partial(teachers.reload_for_test_rows, self._workspace, soft.manifest, self._dataset)
            splits = ("test",) if soft.manifest.input("test_logits") else ("train", "test")
            self._entries[name] = NetworkToMeasure(members, "teacher", lambda _: load(), splits=splits)
        return self._entries[name]

    def _teacher_in_workspace(self, teacher: Artifact, student: Manifest) -> NetworkToMeasure | None:
        """Return a teacher of the student's dataset. If it is not to be measured, it is added, but not listed."""
        manifest = self._manifests.get(teacher) or (teacher.path.exists() and teacher.require("saved_model"))
        if not manifest or manifest.require_input("dataset").digest != student.require_input("dataset").digest:
            return None
        if str(teacher) not in self._entries:
            self._entries[str(teacher)] = NetworkToMeasure(
                teacher.name, teacher.kind, lambda loader: loader.load(teacher, manifest), listed=False
            )
        return self._entries[str(teacher)]
