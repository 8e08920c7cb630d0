"""`kdistill evaluate`: measure networks of the workspace on the rows of their datasets, or on other labeled rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdistill import data, teachers
from kdistill.console import Reporter, Table, five_digits
from kdistill.errors import KdistillError
from kdistill.networks.description import check_description, describe
from kdistill.settings import NAME, Evaluate
from kdistill.soft_targets import SoftTargets
from kdistill.stages.common import announce_data, select_networks, warn_if_stale
from kdistill.stages.inputs import given_dataset, staleness
from kdistill.stages.measurement import Measurement, NetworkToMeasure, Observer, measure
from kdistill.teachers import Ensemble, StoredTeacher
from kdistill.workspace import Artifact, Manifest, Workspace, size

FEW = 100  # smaller numbers have three decimal places
GAP_NOTE = "gap: training accuracy minus test accuracy, in percentage points; all others: test rows only\n"


@dataclass(frozen=True)
class EvaluateResult:
    """The measurements of all networks.

    Of each network, there is one on the training rows, if it knows these, and one on the test rows; or one on other rows.
    """

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
        """Yield for each task a row per network: measures on the test or other rows, and the gap to the training rows."""
        for task in dict.fromkeys(each.task for each in self.measurements):
            measured = [each for each in self.measurements if each.task is task]
            previous = [None, *measured[:-1]]
            test = [
                (before if before and before.split == "train" else None, each)
                for before, each in zip(previous, measured, strict=True)
                if each.split != "train"
            ]
            counts = " or ".join(f"{count:,}" for count in sorted({each.rows for _, each in test}))
            first = test[0][1]
            gap = ["gap"] if task.gap and first.split == "test" else []
            yield Table(
                f"test split, {counts} rows"
                if first.split == "test"
                else f"other data, {first.dataset}, {counts} rows",
                ("network", "role", *(column.head for column in task.columns), *gap, "params", "size"),
                [_table_row(*pair, gap=bool(gap)) for pair in test],
                note=f"{GAP_NOTE * bool(gap)}{task.note}",
            )
            yield from (_per_class_table(each) for each in measured if each.per_class)


def _per_class_table(test: Measurement) -> Table:
    """Return the measures of each class as a table."""
    rows = [[_cell(value) for value in row.values()] for row in test.per_class or ()]
    return Table(f"{test.role} {test.name!r} by {test.task.unit}", list((test.per_class or [{}])[0]), rows)


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < FEW else five_digits(value)
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def _table_row(train: Measurement | None, test: Measurement, *, gap: bool) -> Sequence[str]:
    values = [(column, test.measures.get(column.measure)) for column in test.task.columns]
    of = test.task.gap or ""
    return (
        test.name,
        test.role,
        *("" if value is None else column(value) for column, value in values),
        *(["" if train is None else f"{100 * (train.measures[of] - test.measures[of]):.2f}"] if gap else []),
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
    whose logits are in files is measured on the test rows only. If the dataset in the settings is one that networks were
    trained on, it takes the place of the recorded one. Otherwise all networks are measured on its rows only.

    Reads: `teachers/*/saved_model`, `students/*/saved_model`, the teachers of soft targets, and the datasets.
    Writes: nothing.

    Raises:
        KdistillError: If there is no such network, one is damaged, or the dataset in the settings fits none.
    """
    networks = select_networks(workspace, settings.networks, "evaluate")
    manifests = {network: network.require("saved_model") for network in networks}
    groups, at_hand = _group_by_dataset(workspace, manifests, settings.data)
    look = staleness(workspace, at_hand)
    for artifact, manifest in manifests.items():
        warn_if_stale(look, artifact, manifest, reporter)
    measurements: list[Measurement] = []
    with reporter.steps("evaluate", len(manifests)) as bar:
        for group in groups:
            try:
                dataset = group.load(reporter)
            except KdistillError as error:
                if len(groups) == 1:
                    raise
                reporter.warn(f"skipped {', '.join(map(str, group.networks))}: {error}")
                continue
            plan = _Plan(workspace, group.networks, dataset, recorded=group.recorded)
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


@dataclass(frozen=True)
class _Group:
    """Networks that are measured on the same rows.

    Attributes:
        networks: with their manifests; at least one.
        source: the name of the data.
        recorded: whether they were trained on this dataset. Otherwise they have in common the one that they were trained on.
        cache: as for `data.resolve`.
    """

    networks: dict[Artifact, Manifest]
    source: str
    recorded: bool
    cache: Path

    def load(self, reporter: Reporter) -> data.Dataset:
        """Load the rows; print a line if they are not those of the recorded dataset.

        Raises:
            KdistillError: if they do not fit the networks.
        """
        source = data.resolve(self.source, cache=self.cache)
        if self.recorded:
            return source.load()
        from kdistill.networks.loading import load_network

        artifact = next(iter(self.networks))
        manifest, network = load_network(artifact)
        description = describe(manifest, network.input_shape)
        check_description(description, artifact)
        if not description["class_names"]:
            description["class_names"] = list(map(str, range(network.classes or 0)))
        dataset = source.load_other(description)
        count = len(self.networks)
        reporter.say(
            f"Measuring {count:,} network{'s' * (count != 1)} on {len(dataset.test):,} rows of {dataset.name}, which is not "
            "the recorded dataset"
        )
        announce_data(reporter, dataset)
        return dataset


def _group_by_dataset(
    workspace: Workspace, manifests: Mapping[Artifact, Manifest], given: str | None
) -> tuple[Sequence[_Group], set[str]]:
    """Group networks by the data that they are measured on.

    Args:
        workspace: Where the networks are.
        manifests: The networks.
        given: A dataset. It replaces every recorded dataset with the same digest. If there is none, it replaces all.

    Returns:
        The groups, and the digests of the recorded datasets that are replaced.

    Raises:
        KdistillError: If there is no such dataset.
    """
    recorded = {artifact: manifest.require_input("dataset") for artifact, manifest in manifests.items()}
    found = {
        each: given_dataset(each, given, workspace.cache)
        for each in dict.fromkeys(recorded.values())
        if given is not None
    }
    same = {made_from: source.name for made_from, (source, digest) in found.items() if digest == made_from.digest}
    other = bool(found) and not same
    groups: dict[tuple[str, str], dict[Artifact, Manifest]] = {}
    for artifact, made_from in recorded.items():
        name = found[made_from][0].name if other else same.get(made_from, made_from.name)
        preprocessed_as = made_from.digest if other else ""
        groups.setdefault((name, preprocessed_as), {})[artifact] = manifests[artifact]
    listed = [_Group(networks, name, not other, workspace.cache) for (name, _), networks in groups.items()]
    return listed, {made_from.digest for made_from in (found if other else same)}


class _Plan:
    """The networks that are to be measured on a dataset, and the teachers that students are compared with.

    If the dataset is not the recorded one of the networks, stored logits of its rows are not used.
    """

    def __init__(
        self,
        workspace: Workspace,
        manifests: Mapping[Artifact, Manifest],
        dataset: data.Dataset,
        *,
        recorded: bool = True,
    ) -> None:
        self._workspace, self._manifests, self._dataset, self._recorded = workspace, manifests, dataset, recorded
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
            stored = self._recorded and soft.manifest.input("test_logits") is not None
            load: Callable[[], Ensemble | StoredTeacher | None]
            load = functools.partial(teachers.reload_ensemble, self._workspace, soft.manifest)
            if stored:
                load = functools.partial(teachers.reload_for_test_rows, self._workspace, soft.manifest, self._dataset)
            self._entries[name] = NetworkToMeasure(members, "teacher", lambda _: load(), test_only=stored)
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
