"""`kdistill evaluate`: every network of the workspace, measured on both splits."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from kdistill import data, freshness, metrics
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.workspace import Artifact, Manifest, Workspace, size

Logits = NDArray[np.float32]
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Measurement:
    """One network on one split; None where something does not apply. NLL and KL are in nats, KL at T = 1."""

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
    parameters: int
    bytes: int

    @property
    def accuracy(self) -> float:
        return 1 - self.error_rate


def run(workspace: Workspace, *, reporter: Reporter = Reporter()) -> list[Measurement]:
    """Measure every network, each on the training and test split of the dataset it was trained on.

    Reads: `teachers/*/saved_model`, `students/*/saved_model`, their datasets.
    Writes: nothing.

    Raises:
        KdistillError: if there is no network, or one is damaged.
    """
    networks = [*workspace.teachers(), *workspace.students()]
    if not networks:
        raise KdistillError(f"{workspace.root} has no networks to evaluate: kdistill train-teacher")
    manifests = {artifact.path: artifact.require() for artifact in networks}
    datasets: dict[str, data.Dataset] = {}
    said: dict[Artifact, dict[str, Logits]] = {}
    found = []
    with reporter.steps("evaluate", len(networks)) as bar:
        for artifact in networks:
            manifest = manifests[artifact.path]
            for reason in freshness.stale(workspace, manifest):
                reporter.warn(f"{artifact} is stale, {reason}")
            try:
                dataset = _dataset(manifest, datasets)
                said[artifact] = _predict(artifact, dataset)
            except KdistillError as error:
                reporter.warn(f"{artifact} is left out: {error}")
                continue
            teacher = _teacher_of(workspace, manifest)
            teacher = teacher if teacher in said and _same_data(manifests[teacher.path], manifest) else None
            for split in SPLITS:
                others = said[teacher][split] if teacher else None
                found.append(_measure(artifact, manifest, dataset, split, said[artifact][split], others))
            bar.advance()
    if not found:
        raise KdistillError(f"no network of {workspace.root} can be evaluated")
    return found


def _dataset(manifest: Manifest, opened: dict[str, data.Dataset]) -> data.Dataset:
    name = manifest.inputs["dataset"].name
    if name not in opened:
        opened[name] = data.resolve(name).load()
    return opened[name]


def _predict(artifact: Artifact, dataset: data.Dataset) -> dict[str, Logits]:
    from kdistill import networks

    _, network = networks.load(artifact)
    network.check(dataset.input_shape, dataset.classes, dataset.name)
    return {split: network.predict(getattr(dataset, split).blocks(data.BLOCK_ROWS)) for split in SPLITS}


def _teacher_of(workspace: Workspace, manifest: Manifest) -> Artifact | None:
    name = manifest.results.get("teacher")
    return workspace.teacher(name) if name else None


def _same_data(one: Manifest, other: Manifest) -> bool:
    return one.inputs["dataset"].digest == other.inputs["dataset"].digest


def _measure(
    artifact: Artifact,
    manifest: Manifest,
    dataset: data.Dataset,
    split: str,
    logits: Logits,
    teacher_logits: Logits | None,
) -> Measurement:
    labels = getattr(dataset, split).labels
    errors = metrics.errors(logits, labels)
    return Measurement(
        name=artifact.name,
        role=artifact.kind,
        split=split,
        rows=len(labels),
        errors=errors,
        error_rate=errors / len(labels),
        nll=metrics.negative_log_likelihood(logits, labels),
        ece=metrics.expected_calibration_error(logits, labels),
        brier=metrics.brier_score(logits, labels),
        agreement=None if teacher_logits is None else metrics.agreement(logits, teacher_logits),
        kl_to_teacher=None if teacher_logits is None else metrics.kl_divergence(teacher_logits, logits),
        parameters=manifest.results["parameters"],
        bytes=size(artifact.path / "saved_model"),
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
            _short(test.parameters),
            _short(test.bytes) + "B",
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
