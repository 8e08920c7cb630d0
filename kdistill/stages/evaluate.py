"""`kdistill evaluate`: every network of the workspace, measured on both splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdistill import data, freshness, metrics, teachers
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.readers import BLOCK_ROWS
from kdistill.settings import NAME
from kdistill.soft_targets import SoftTargets
from kdistill.workspace import Artifact, Manifest, Workspace, size

SPLITS = ("train", "test")


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
    """A `SavedNetwork`, or a `Panel` of several."""

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int, dataset: str) -> None: ...

    def logits(self, inputs: NDArray[Any], /) -> NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class Judged:
    """A network that is measured, and the one that it learned from."""

    name: str
    role: str
    network: Network
    parameters: int | None = None
    bytes: int | None = None
    teacher: Judged | None = None


def run(workspace: Workspace, *, reporter: Reporter = Reporter()) -> list[Measurement]:
    """Measure every network, each on the training and test split of the dataset it was trained on.

    Teachers from outside, and several taken together, are measured where a student has learned from them. Rows are
    read once for all networks of a dataset, one block at a time.

    Reads: `teachers/*/saved_model`, `students/*/saved_model`, what soft targets were made with, the datasets.
    Writes: nothing.

    Raises:
        KdistillError: if there is no network, or one is damaged.
    """
    artifacts = [*workspace.teachers(), *workspace.students()]
    if not artifacts:
        raise KdistillError(f"{workspace.root} has no networks to evaluate: {workspace.command('train-teacher')}")
    manifests = {artifact: artifact.require() for artifact in artifacts}
    groups: dict[str, dict[Artifact, Manifest]] = {}
    for artifact, manifest in manifests.items():
        for reason in freshness.stale(workspace, manifest):
            reporter.warn(f"{artifact} is stale, {reason}")
        groups.setdefault(manifest.inputs["dataset"].name, {})[artifact] = manifest
    found: list[Measurement] = []
    with reporter.steps("evaluate", len(artifacts)) as bar:
        for name, group in groups.items():
            try:
                dataset = data.resolve(name, cache=workspace.cache).load()
                judged = _load(workspace, group, dataset, reporter)
                of_splits = [_measure(judged, getattr(dataset, split)) for split in SPLITS]
            except KdistillError as error:
                reporter.warn(f"{', '.join(map(str, group))} left out: {error}")
                continue
            found += [measurement for pair in zip(*of_splits, strict=True) for measurement in pair]
            bar.advance(len(group))
    if not found:
        raise KdistillError(f"no network of {workspace.root} can be evaluated")
    return found


def _load(
    workspace: Workspace, group: Mapping[Artifact, Manifest], dataset: data.Dataset, reporter: Reporter
) -> list[Judged]:
    """The networks of one dataset, teachers first."""
    from kdistill import networks

    judged: dict[str, Judged] = {}
    for artifact, manifest in group.items():
        try:
            _, network = networks.load(artifact)
            network.check(dataset.input_shape, dataset.input_dtype, dataset.classes, dataset.name)
        except KdistillError as error:
            reporter.warn(f"{artifact} is left out: {error}")
            continue
        teacher = _teacher_of(workspace, manifest, group, judged)
        judged[str(artifact)] = Judged(
            artifact.name,
            artifact.kind,
            network,
            manifest.results["parameters"],
            size(artifact.path / "saved_model"),
            teacher,
        )
    return sorted(judged.values(), key=lambda one: one.role != "teacher")


def _teacher_of(
    workspace: Workspace, manifest: Manifest, group: Mapping[Artifact, Manifest], judged: dict[str, Judged]
) -> Judged | None:
    """Whoever a student learned from, if it is still there; added to the networks that are measured."""
    if corrected := manifest.inputs.get("student"):  # it learned what the student did whose biases were shifted
        student = workspace.student(corrected.name).manifest()
        if student is None or student.outputs["saved_model"] != corrected.digest:
            return None
        manifest = student
    name = manifest.results.get("teacher")
    if not name or "soft_targets" not in manifest.inputs:
        return None
    if NAME.fullmatch(name):
        teacher = workspace.teacher(name)
        taught = group.get(teacher)
        same = taught is not None and taught.inputs["dataset"].digest == manifest.inputs["dataset"].digest
        return judged.get(str(teacher)) if same else None
    soft = SoftTargets.open(workspace.soft_targets(manifest.inputs["soft_targets"].name))
    if soft is None or soft.digest != manifest.inputs["soft_targets"].digest:
        return None
    panel = None if name in judged else teachers.again(workspace, soft.manifest)
    if panel:
        judged[name] = Judged(" + ".join(Path(one).name for one in name.split(", ")), "teacher", panel)
    return judged.get(name)


def _measure(judged: list[Judged], split: data.Split) -> list[Measurement]:
    """All networks on one split; a row takes few numbers, whatever the number of classes."""
    rows: dict[Judged, list[list[NDArray[Any]]]] = {one: [] for one in judged}
    start = 0
    for block in split.blocks(BLOCK_ROWS):
        labels = split.labels[start : start + len(block)]
        start += len(block)
        said = {one: one.network.logits(block) for one in judged}
        for one, logits in said.items():
            columns = [
                metrics.confidence(logits),
                logits.argmax(axis=1) == labels,
                metrics.negative_log_likelihood(logits, labels),
                metrics.brier_score(logits, labels),
            ]
            if one.teacher:
                theirs = said[one.teacher]
                columns += [metrics.agreement(logits, theirs), metrics.kl_divergence(theirs, logits)]
            rows[one].append(columns)
    return [_measurement(one, split.name, [np.concatenate(c) for c in zip(*rows[one], strict=True)]) for one in judged]


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


def show(measurements: list[Measurement], reporter: Reporter) -> None:
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


def as_json(measurements: list[Measurement]) -> list[dict[str, object]]:
    """A list of plain objects, one a network and split."""
    return [asdict(measurement) for measurement in measurements]
