"""Which networks a report compares: a distilled student, and the same network from hard labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kdistill.errors import KdistillError
from kdistill.evaluation import sweeps
from kdistill.settings import Selection, TrainStudent, build
from kdistill.stages.common import find_networks
from kdistill.workspace import Artifact, Manifest, Workspace, commands

FIXED = ("dataset", "model", "weights")  # kinds of inputs that the network from hard labels has too


@dataclass(frozen=True)
class Subject:
    """The networks that a report compares.

    Attributes:
        network: the distilled student; any other network if there is none.
        manifest: of the network.
        hard: the student with the same settings and seed from hard labels only; None if there is none.
        hard_settings: the settings of that student.
        default: whether it is what the report is about if the user names no student.
    """

    network: Artifact
    manifest: Manifest
    hard: Artifact | None
    hard_settings: dict[str, Any]
    default: bool

    @property
    def distilled(self) -> bool:
        """Whether the network learned from soft targets."""
        return is_distilled(self.manifest)

    @property
    def compared(self) -> list[Artifact]:
        """The students that are compared."""
        return [network for network in (self.network, self.hard) if network and network.kind == "student"]

    def hard_command(self) -> str:
        """Return the command that trains the same network from hard labels."""
        hard = replace(self.manifest, settings=self.hard_settings, inputs=self.manifest.inputs_of(*FIXED))
        name = f"{self.network.name.rpartition('/')[2][:95]}-hard"
        return replace(self.network, name=name, whole=None).command_for(hard)


def is_distilled(manifest: Manifest) -> bool:
    """Return whether a network learned from soft targets."""
    return manifest.kind == "student" and manifest.settings["alpha"] < 1


def hard_settings(manifest: Manifest) -> dict[str, Any]:
    """Return the settings of the same student with hard labels only."""
    settings: TrainStudent = build(TrainStudent, manifest.settings)
    return settings.hard().recorded()


def find(workspace: Workspace, name: str | None) -> Subject:
    """Choose the networks to compare.

    Args:
        workspace: where they are.
        name: of a student. By default it is `student`, or else the first student with soft targets, or else one of a
            sweep: of the setting that has the controls, the one of the first seed.

    Raises:
        KdistillError: if there is no student of the name, or no network at all.
    """
    students = _students(workspace)
    network = default = _default(workspace, students)
    if name is not None:
        network = find_networks(workspace, name, "report", "student", teachers=False)[0]
    if network is None:
        command = commands.command(workspace.root, "train-teacher")
        raise KdistillError(f"{workspace.root} has no networks to report on: {command}")
    manifest = network.require()
    hard, settings = None, {}
    if is_distilled(manifest):
        settings = hard_settings(_on_the_rows_of_its_soft_targets(workspace, manifest))
        matches = (other for other, its in students.items() if _is_hard_version(its, manifest, settings))
        hard = next(matches, None)
    return Subject(network, manifest, hard, settings, network == default)


def _on_the_rows_of_its_soft_targets(workspace: Workspace, student: Manifest) -> Manifest:
    """Return a student's manifest with the rows that its soft targets select, unless it selects rows itself."""
    made_from = student.require_input("soft_targets")
    soft = workspace.soft_targets(made_from.name).manifest()
    if soft is None or str(Selection.of(student.settings)):
        return student
    rows = {name: soft.settings[name] for name in Selection().recorded() if name in soft.settings}
    return replace(student, settings={**student.settings, **rows})


def _students(workspace: Workspace) -> dict[Artifact, Manifest]:
    """Return all students that were trained, those of sweeps last."""
    found = workspace.artifacts("student")
    for sweep in workspace.artifacts("sweep"):
        names = [student.name for student in workspace.sweep_students(sweep.name)]
        found += [workspace.student(f"{sweep.name}/{name}") for name in names]
    manifests = {student: student.manifest() for student in found}
    return {student: manifest for student, manifest in manifests.items() if manifest and not manifest.input("student")}


def _default(workspace: Workspace, students: Mapping[Artifact, Manifest]) -> Artifact | None:
    distilled = [student for student, manifest in students.items() if is_distilled(manifest)]
    own = [student for student in distilled if "/" not in student.name]
    named = [student for student in own if student.name == TrainStudent.name]
    chosen = [student for sweep in workspace.artifacts("sweep") if (student := _chosen(workspace, sweep)) in distilled]
    return next(iter([*named, *own, *chosen, *distilled, *workspace.artifacts("teacher", "student")]), None)


def _chosen(workspace: Workspace, sweep: Artifact) -> Artifact:
    """Return the first student of a sweep's chosen setting."""
    rows = sweeps.read(sweep.path / "table.csv", sweep.remedy)
    setting = sweeps.choice(rows, rows[0].model)
    return workspace.student(f"{sweep.name}/{next(row.student for row in rows if row.setting == setting)}")


def _is_hard_version(other: Manifest, distilled: Manifest, settings: Mapping[str, Any]) -> bool:
    """Return whether a student has the settings and inputs of a distilled one, but learned from hard labels only."""
    return (
        not is_distilled(other)
        and hard_settings(other) == settings
        and [each.digest for each in other.inputs_of(*FIXED)] == [each.digest for each in distilled.inputs_of(*FIXED)]
    )
