"""The students of a sweep: which ones there are, how they are trained, and how controls are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data, tasks, teachers
from kdistill.console import Reporter
from kdistill.data.rows import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics, sweeps
from kdistill.evaluation.sweeps import Row, Setting
from kdistill.settings import Sweep, TrainStudent
from kdistill.stages.student_inputs import StudentInputs
from kdistill.workspace import Artifact, Input, Manifest, Workspace

if TYPE_CHECKING:
    from kdistill.networks.saved_models import SavedNetwork


@dataclass(frozen=True)
class SweepStudent:
    """One student of a sweep."""

    setting: Setting
    settings: TrainStudent
    inputs: StudentInputs
    artifact: Artifact
    identity: Manifest

    def up_to_date(self) -> bool:
        return self.artifact.out_of_date(self.identity) is None

    def manifest(self) -> Manifest:
        """Return its manifest, after it was trained."""
        manifest = self.artifact.manifest()
        assert manifest is not None
        return manifest

    def row(self) -> Row:
        """Return its row of the table. Validation errors are those of the epoch whose weights it has."""
        manifest = self.manifest()
        results, settings, objective = manifest.results, manifest.settings, self.settings.objective
        headline = tasks.get(results["task"]).headline
        validated = results["held_out"] == "validation"
        return Row(
            student=self.artifact.name,
            kind=self.setting.kind,
            model=settings["model"],
            loss=objective.loss if objective.alpha < 1.0 else None,
            temperature=settings["temperature"],
            alpha=settings["alpha"],
            seed=settings["seed"],
            measure=headline.measure,
            lower_is_better=headline.lower_is_better,
            validation=results.get(f"validation_{headline.measure}") if validated else None,
            validation_rows=int(results["held_out_rows"]) if validated else None,
            test=results.get(f"test_{headline.measure}"),
            test_rows=results["test_rows"],
        )


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """The students of a sweep."""

    workspace: Workspace
    settings: Sweep
    inputs: StudentInputs  # dataset and soft targets of the students
    other: StudentInputs | None  # the same with --other-soft-targets
    models: Sequence[tuple[str, str | None]]  # name in tables, and name in a student's settings
    reporter: Reporter
    warned: set[str] = field(default_factory=set)  # keys of the warnings that were printed once

    @classmethod
    def open(cls, workspace: Workspace, settings: Sweep, reporter: Reporter) -> SweepPlan:
        """Find the dataset and the soft targets of a sweep, and check the names of its students."""
        objective = replace(settings.student.objective, alpha=settings.alphas[0])
        student = replace(settings.student, objective=objective, model=next(iter(settings.models), None))
        inputs = StudentInputs.open(workspace, student, reporter)
        models = [(inputs.model(replace(student, model=model)).name, model) for model in settings.models or (None,)]
        names = [name for name, _ in models]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise KdistillError(f"--model: {repeated[0]} is there twice (expected different networks)")
        sweeps.check_names(settings, models, inputs.task.name)
        other = None
        if settings.other_soft_targets is not None:
            of_other = replace(student, soft_targets=settings.other_soft_targets, dataset=inputs.source.name)
            other = StudentInputs.open(workspace, of_other, reporter, same_dataset_as=inputs)
        return cls(workspace, settings, inputs, other, models, reporter)

    @property
    def artifact(self) -> Artifact:
        """The sweep in the workspace."""
        return self.workspace.sweep(self.settings.name)

    def identity(self) -> Manifest:
        """Return what the sweep is made from: what its students have in common, and the lists of what differs."""
        hard = [setting for setting in self.grid() if setting.kind == sweeps.HARD]
        distilled = next(setting for setting in self.grid() if setting.kind != sweeps.HARD)
        shared = self.inputs.identity(distilled.student).inputs
        inputs = [made_from for made_from in shared if made_from.kind not in ("model", "weights")]
        for index, setting in enumerate(hard, 1):
            inputs += self.inputs.model(setting.student).inputs(index)
        if self.other:
            assert self.other.soft is not None
            inputs.append(Input("other_soft_targets", str(self.settings.other_soft_targets), self.other.soft.digest))
        settings = self.settings.recorded() | {"model": [name for name, _ in self.models]}
        return Manifest(kind="sweep", settings=settings, inputs=tuple(inputs))

    def grid(self) -> list[Setting]:
        """Return all settings except controls."""
        return sweeps.grid(self.settings, self.models, self.inputs.task.name)

    def controls(self, rows: Sequence[Row]) -> list[Setting]:
        """Return the controls of each model's best setting, given the rows of all students of the grid."""
        settings = [setting for setting in self.grid() for _ in self.settings.seeds]
        setting_of = {row.setting: setting for row, setting in zip(rows, settings, strict=True)}
        chosen = [setting_of[sweeps.choice(rows, name)] for name, _ in self.models]
        return sweeps.controls(self.settings, chosen, self.inputs.task.name)

    @property
    def total(self) -> int:
        """The number of students."""
        chosen = [setting for setting in self.grid() if setting.kind == sweeps.DISTILLED][: len(self.models)]
        controls = len(sweeps.controls(self.settings, chosen, self.inputs.task.name)) if self.settings.controls else 0
        return (len(self.grid()) + controls) * len(self.settings.seeds)

    def grid_students(self) -> Iterator[SweepStudent]:
        """Yield all students except controls."""
        return (self.student(setting, seed) for setting in self.grid() for seed in self.settings.seeds)

    def control_students(self, rows: Sequence[Row]) -> Iterator[SweepStudent]:
        """Yield the controls, given the rows of all students of the grid."""
        return (self.student(setting, seed) for setting in self.controls(rows) for seed in self.settings.seeds)

    def student(self, setting: Setting, seed: int) -> SweepStudent:
        """Return the student of a setting and a seed."""
        settings = setting.of(seed)
        inputs = self.other if setting.kind == sweeps.OTHER and self.other else self.inputs
        artifact = self.workspace.sweep_student(self.settings.name, settings.name)
        return SweepStudent(setting, settings, inputs, artifact, inputs.identity(settings))

    def finished_rows(self, identity: Manifest, table: str) -> list[Row] | None:
        """Return the rows of the table if the sweep and all its students are up to date, else None."""
        students = list(self.grid_students())
        if not all(map(SweepStudent.up_to_date, students)):
            return None
        if self.settings.controls:
            controls = list(self.control_students([student.row() for student in students]))
            if not all(map(SweepStudent.up_to_date, controls)):
                return None
            students += controls
        if self.artifact.out_of_date(identity) is not None:
            return None
        if self.artifact.require().results.get("students") != self.digests(students):
            return None
        return sweeps.read(self.artifact.path / table, self.artifact.remedy)

    def out_of_date(self, identity: Manifest) -> str:
        """Return why the sweep has work to do, in words."""
        grid = list(self.grid_students())
        waiting = sum(not student.up_to_date() for student in grid)
        reasons = [
            self.artifact.out_of_date(identity),
            f"{waiting} of {len(grid)} students to train" if waiting else None,
        ]
        return "; ".join(filter(None, reasons)) or "its students have changed"

    @staticmethod
    def digests(students: Sequence[SweepStudent]) -> dict[str, str]:
        """Return the digest of each student's network, by the name of the student."""
        return {student.artifact.name: student.manifest().outputs["saved_model"] for student in students}

    def warn_once(self, key: str, text: str) -> None:
        """Print a warning, unless one with the same key was printed before."""
        if key not in self.warned:
            self.warned.add(key)
            self.reporter.warn(text)


def measure_controls(plan: SweepPlan, students: Sequence[SweepStudent], rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows, with NLL, ECE and agreement for the controls and the students that they are compared with.

    Logits of hard-label students are also scaled by the temperature that fits the validation rows.
    """
    from kdistill.networks.loading import load_network
    from kdistill.training.training_rows import held_out_rows

    chosen = [sweeps.choice(rows, name) for name, _ in plan.models]
    dataset, teacher_classes = plan.inputs.dataset, _teacher_classes(plan)
    labels = dataset.test.labels
    for student, row in zip(students, rows, strict=True):
        if not plan.inputs.task.categorical or (row.kind == sweeps.DISTILLED and row.setting not in chosen):
            yield row
            continue
        _, network = load_network(student.artifact)
        logits = _logits(network, dataset.test)
        measures: dict[str, Any] = _calibration(logits, labels)
        if teacher_classes is not None:
            measures["agreement"] = float((logits.argmax(axis=1) == teacher_classes).mean())
        if row.kind == sweeps.HARD and row.validation_rows:
            mask = held_out_rows(dataset.train.keys(), student.settings.training)
            held_out = dataset.train.select(mask)
            temperature = metrics.fitted_temperature(_logits(network, held_out), held_out.labels)
            measures |= {"fitted_temperature": temperature, **_calibration(logits / temperature, labels, "scaled_")}
        yield replace(row, **measures)


def _teacher_classes(plan: SweepPlan) -> NDArray[np.int64] | None:
    """Return the class that the teacher predicts for each test row, (rows,); None if the teacher has changed."""
    soft = plan.inputs.soft
    assert soft is not None
    if not plan.inputs.task.categorical:
        return None
    dataset = plan.inputs.dataset
    teacher = teachers.reload_for_test_rows(plan.workspace, soft.manifest, dataset)
    if teacher is None:
        plan.reporter.warn(
            f"agreement is not measured: the teacher of {soft.path} has changed, or its logits are in a file (kdistill "
            "soften --test-logits adds those of the test rows)"
        )
        return None
    return np.concatenate([teacher.logits(block).argmax(axis=1) for block in dataset.test.blocks(BLOCK_ROWS)])


def _logits(network: SavedNetwork, rows: data.Split) -> NDArray[np.float32]:
    return np.concatenate([network.logits(block) for block in rows.blocks(BLOCK_ROWS)])


def _calibration(logits: NDArray[Any], labels: NDArray[np.int64], prefix: str = "") -> dict[str, float]:
    """Return the mean NLL and the ECE."""
    correct = logits.argmax(axis=1) == labels
    return {
        f"{prefix}nll": float(metrics.negative_log_likelihood(logits, labels).mean()),
        f"{prefix}ece": metrics.expected_calibration_error(metrics.confidence(logits), correct),
    }
