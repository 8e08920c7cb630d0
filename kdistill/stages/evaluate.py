"""`kdistill evaluate`: networks of the workspace, measured on both splits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdistill import data, teachers
from kdistill.console import Reporter, Steps
from kdistill.data.readers import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.settings import NAME, Evaluate
from kdistill.soft_targets import SoftTargets
from kdistill.stages import find_networks
from kdistill.workspace import Artifact, Input, Manifest, Workspace, size
from kdistill.workspace import staleness as freshness

if TYPE_CHECKING:
    from kdistill.networks.loading import Loader

SPLITS = ("train", "test")
HELD_BYTES = 256 << 20  # of a dataset's inputs, and as much of a teacher's logits


@dataclass(frozen=True)
class Measurement:
    """One network on one split; None where something does not apply or is not known.

    NLL and KL are in nats, KL at T = 1.
    """

    name: str
    role: str
    split: str
    rows: int
    errors: int
    error_rate: float
    nll: float
    ece: float
    brier: float
    agreement: float | None
    kl_to_teacher: float | None
    parameters: int | None
    bytes: int | None

    @property
    def accuracy(self) -> float:
        return 1 - self.error_rate


class Network(Protocol):
    """A `SavedNetwork`, or a `Ensemble` of several."""

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int, dataset: str) -> None: ...

    def logits(self, inputs: NDArray[Any], /) -> NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class Judged:
    """A network to measure, and the teacher to compare it with.

    `load` reads it from disk; it returns None if the teachers are no longer what a student learned from. `order` puts
    networks with the same graph one after another.
    """

    name: str
    role: str
    load: Callable[[Loader], Network | None]
    order: tuple[object, ...] = ()
    parameters: int | None = None
    bytes: int | None = None
    teacher: Judged | None = None
    listed: bool = True

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"


class Blocks:
    """Arrays that are computed once and held, or, where they take too much memory, computed again each time."""

    def __init__(self, compute: Callable[[], Iterable[NDArray[Any]]], *, hold: bool) -> None:
        self._compute, self._hold = compute, hold
        self._held: list[NDArray[Any]] | None = None

    def __iter__(self) -> Iterator[NDArray[Any]]:
        if self._hold and self._held is None:
            self._held = list(self._compute())
        return iter(self._compute() if self._held is None else self._held)


@dataclass(frozen=True)
class EvaluateResult:
    """The measurements of all networks."""

    measurements: Sequence[Measurement]
    exit_status: int = 0

    def as_json(self) -> list[dict[str, object]]:
        """Return a plain object per network and split."""
        return [asdict(measurement) for measurement in self.measurements]

    def show(self, reporter: Reporter) -> None:
        """Print a row per network."""
        show(self.measurements, reporter)


def run(workspace: Workspace, settings: Evaluate = Evaluate(), *, reporter: Reporter = Reporter()) -> EvaluateResult:
    """Measure networks, each on the training and test split of the dataset it was trained on.

    Unless some are named, these are all teachers and students, and the teachers from outside and ensembles that
    students have learned from. One network is in memory at a time, and with it its teacher, if the teacher's logits take
    more than `HELD_BYTES`. A dataset of more than `HELD_BYTES` is read again for each network, one block at a time.

    Reads: `teachers/*/saved_model`, `students/*/saved_model`, what soft targets were made with, the datasets.
    Writes: nothing.

    Raises:
        KdistillError: if there is no such network, one is damaged, or none was trained on the dataset that is given.
    """
    manifests = {artifact: artifact.require("saved_model") for artifact in _artifacts(workspace, settings)}
    groups, at_hand = _by_dataset(manifests, settings.data)
    look = freshness.Look(workspace, at_hand)
    for artifact, manifest in manifests.items():
        for reason in look.stale(manifest):
            reporter.warn(f"{artifact} is stale, {reason}")
    found: list[Measurement] = []
    with reporter.steps("evaluate", len(manifests)) as bar:
        for name, group in groups.items():
            try:
                dataset = data.resolve(name, cache=workspace.cache).load()
            except KdistillError as error:
                reporter.warn(f"{', '.join(map(str, group))} left out: {error}")
                continue
            found += _measured(_plan(workspace, group), dataset, reporter, bar)
    if not found:
        raise KdistillError(f"no network of {workspace.root} can be evaluated")
    return EvaluateResult(found)


def _artifacts(workspace: Workspace, settings: Evaluate) -> list[Artifact]:
    """The networks that are named, or all teachers and students."""
    if settings.networks:
        named = [one for name in settings.networks for one in find_networks(workspace, name, "evaluate")]
        return sorted(dict.fromkeys(named), key=lambda one: one.kind != "teacher")
    artifacts = [*workspace.teachers(), *workspace.students()]
    if not artifacts:
        raise KdistillError(f"{workspace.root} has no networks to evaluate: {workspace.command('train-teacher')}")
    return artifacts


def _by_dataset(
    manifests: Mapping[Artifact, Manifest], given: str | None
) -> tuple[dict[str, dict[Artifact, Manifest]], set[str]]:
    """The networks of each dataset, by its name, and the digest of the dataset that is given, if one is.

    A network whose dataset has the digest of the one that is given is measured on that.

    Raises:
        KdistillError: if there is no such network.
    """
    names: dict[Input, str] = {}
    wrong: list[KdistillError] = []
    at_hand: set[str] = set()
    groups: dict[str, dict[Artifact, Manifest]] = {}
    for artifact, manifest in manifests.items():
        made_from = manifest.inputs["dataset"]
        if made_from not in names:
            names[made_from] = made_from.name
            if given is not None:
                try:
                    names[made_from] = freshness.source(made_from, given, artifact).name
                    at_hand.add(made_from.digest)
                except KdistillError as error:
                    wrong.append(error)
        groups.setdefault(names[made_from], {})[artifact] = manifest
    if wrong and not at_hand:
        raise wrong[0]
    return groups, at_hand


def _plan(workspace: Workspace, group: Mapping[Artifact, Manifest]) -> list[Judged]:
    """The networks of one dataset, teachers first; none is loaded."""
    from kdistill.networks import loading as networks

    open_soft = functools.cache(lambda name: SoftTargets.open(workspace.soft_targets(name)))
    judged: dict[str, Judged] = {}
    for artifact, manifest in group.items():
        teacher = _teacher_of(workspace, manifest, group, judged, open_soft)
        judged[str(artifact)] = Judged(
            artifact.name,
            artifact.kind,
            functools.partial(_load, artifact, manifest),
            networks.graph(artifact.path / "saved_model"),
            manifest.results["parameters"],
            size(artifact.path / "saved_model"),
            teacher,
        )
    return sorted(judged.values(), key=lambda one: one.role != "teacher")


def _load(artifact: Artifact, manifest: Manifest, loader: Loader) -> Network:
    return loader.load(artifact, manifest)


def _teacher_of(
    workspace: Workspace,
    manifest: Manifest,
    group: Mapping[Artifact, Manifest],
    judged: dict[str, Judged],
    open_soft: Callable[[str], SoftTargets | None],
) -> Judged | None:
    """The teacher of a student, if it still is what the student learned from; it is added to `judged`."""
    if corrected := manifest.inputs.get("student"):  # it learned what the student did whose biases were shifted
        student = workspace.student(corrected.name).manifest()
        if student is None or student.outputs["saved_model"] != corrected.digest:
            return None
        manifest = student
    name = manifest.results.get("teacher")
    if not name or "soft_targets" not in manifest.inputs:
        return None
    if NAME.fullmatch(name):
        return _teacher_in_workspace(workspace.teacher(name), manifest, group, judged)
    soft = open_soft(manifest.inputs["soft_targets"].name)
    if soft is None or soft.digest != manifest.inputs["soft_targets"].digest:
        return None
    if name not in judged:
        members = " + ".join(Path(one).name for one in name.split(", "))
        judged[name] = Judged(members, "teacher", lambda _: teachers.reload(workspace, soft.manifest))
    return judged[name]


def _teacher_in_workspace(
    teacher: Artifact, student: Manifest, group: Mapping[Artifact, Manifest], judged: dict[str, Judged]
) -> Judged | None:
    """The teacher of a student of the same dataset; one that is not to be measured is added to `judged` unlisted."""
    manifest = group.get(teacher) or (teacher.path.exists() and teacher.require("saved_model"))
    if not manifest or manifest.inputs["dataset"].digest != student.inputs["dataset"].digest:
        return None
    if str(teacher) not in judged:
        load = functools.partial(_load, teacher, manifest)
        judged[str(teacher)] = Judged(teacher.name, teacher.kind, load, listed=False)
    return judged[str(teacher)]


def _measured(plan: list[Judged], dataset: data.Dataset, reporter: Reporter, bar: Steps) -> list[Measurement]:
    """Measure the networks of one dataset, the students of a teacher one after another."""
    from kdistill.networks import loading as networks

    splits = dataset.train, dataset.test
    hold = sum(split.inputs.nbytes for split in splits) <= HELD_BYTES
    inputs = [Blocks(functools.partial(split.blocks, BLOCK_ROWS), hold=hold) for split in splits]
    found: dict[Judged, list[Measurement]] = {}
    left_out: dict[str, list[Judged]] = {}

    def measure(
        one: Judged, loader: networks.Loader, teacher: list[Blocks] | None = None, *, hold: bool = False
    ) -> list[Blocks] | None:
        """Measure a network; return its logits of the training and test rows, or None if it has to be left out."""
        if one.listed:
            bar.advance()
        try:
            network = one.load(loader)
            if network is None:
                return None
            network.check(dataset.input_shape, dataset.input_dtype, dataset.classes, dataset.name)
            own = [Blocks(functools.partial(map, network.logits, blocks), hold=hold) for blocks in inputs]
            if one.listed:
                found[one] = [_measure(one, *each) for each in zip(splits, own, teacher or (None, None), strict=True)]
        except KdistillError as error:
            left_out.setdefault(str(error), []).append(one)
            return None
        return own

    loader = networks.Loader()
    fits = sum(len(split) for split in splits) * dataset.classes * 4 <= HELD_BYTES
    taught = dict.fromkeys(one.teacher for one in plan)
    for teacher in taught:
        logits = measure(teacher, networks.Loader(), hold=fits) if teacher else None
        students = [one for one in plan if one.teacher is teacher and one not in taught]
        for student in sorted(students, key=lambda one: one.order):
            measure(student, loader, logits)
    for why, those in left_out.items():
        reporter.warn(f"{', '.join(map(str, those))} left out: {why}")
    return [measurement for one in plan for measurement in found.get(one, [])]


def _measure(
    one: Judged, split: data.Split, logits: Iterable[NDArray[Any]], teacher: Iterable[NDArray[Any]] | None
) -> Measurement:
    """One network on one split, block by block; a row takes few numbers, whatever the number of classes."""
    rows: list[list[NDArray[Any]]] = []
    start = 0
    pairs: Iterable[tuple[NDArray[Any], NDArray[Any] | None]]
    pairs = ((own, None) for own in logits) if teacher is None else zip(logits, teacher, strict=True)
    for own, theirs in pairs:
        labels = split.labels[start : start + len(own)]
        start += len(own)
        columns = [
            metrics.confidence(own),
            own.argmax(axis=1) == labels,
            metrics.negative_log_likelihood(own, labels),
            metrics.brier_score(own, labels),
        ]
        if theirs is not None:
            columns += [metrics.agreement(own, theirs), metrics.kl_divergence(theirs, own)]
        rows.append(columns)
    return _measurement(one, split.name, [np.concatenate(column) for column in zip(*rows, strict=True)])


def _measurement(one: Judged, split: str, columns: list[NDArray[Any]]) -> Measurement:
    confidence, right, nll, brier, *of_teacher = columns
    agreement, kl_to_teacher = (float(values.mean()) for values in of_teacher) if of_teacher else (None, None)
    errors = int((~right).sum())
    return Measurement(
        name=one.name,
        role=one.role,
        split=split,
        rows=len(right),
        errors=errors,
        error_rate=errors / len(right),
        nll=float(nll.mean()),
        ece=metrics.expected_calibration_error(confidence, right),
        brier=float(brier.mean()),
        agreement=agreement,
        kl_to_teacher=kl_to_teacher,
        parameters=one.parameters,
        bytes=one.bytes,
    )


def show(measurements: Sequence[Measurement], reporter: Reporter) -> None:
    """Print one row a network: measures on test rows, and the gap to training rows."""
    by_split = {split: [m for m in measurements if m.split == split] for split in SPLITS}
    columns = ("network", "role", "errors", "rate", "NLL", "ECE", "Brier", "agree", "KL", "gap", "params", "size")
    rows = [
        (
            test.name,
            test.role,
            f"{test.errors:,}",
            f"{test.error_rate:.2%}",
            f"{test.nll:.3f}",
            f"{test.ece:.3f}",
            f"{test.brier:.3f}",
            "" if test.agreement is None else f"{test.agreement:.1%}",
            "" if test.kl_to_teacher is None else f"{test.kl_to_teacher:.3f}",
            f"{100 * (train.accuracy - test.accuracy):.2f}",
            "" if test.parameters is None else _short(test.parameters),
            "" if test.bytes is None else _short(test.bytes) + "B",
        )
        for train, test in zip(by_split["train"], by_split["test"], strict=True)
    ]
    counts = sorted({test.rows for test in by_split["test"]})
    reporter.table(
        f"test split, {' or '.join(f'{count:,}' for count in counts)} rows",
        columns,
        rows,
        note="all on the test split but gap: training accuracy less test accuracy, in points\n"
        "agree, KL: agreement with the teacher, KL(teacher || student) at T = 1; NLL and KL in nats",
    )


def _short(count: int) -> str:
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)
