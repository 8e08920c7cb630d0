"""Students in the making: what they come from, opened once for all that come from it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.console import Reporter
from kdistill.errors import KdistillError, UsageError
from kdistill.networks import sources as model_sources
from kdistill.settings import LOSSES, NEW_WEIGHTS, Objective, TrainStudent, TrainTeacher
from kdistill.soft_targets import AlignedSoftTargets, SoftTargets, transfer_set, transfer_sources
from kdistill.workspace import Artifact, Input, Manifest, Workspace
from kdistill.workspace import staleness as freshness

if TYPE_CHECKING:
    from kdistill.training.artifact import Compiled, TrainingRows


@dataclass(frozen=True, eq=False)
class StudentInputs:
    """What students learn from: a dataset, and what a teacher said of its rows or of others.

    `soft` is None where all learn from hard labels alone. `teachers_model` is the network of a student that names none.
    `dataset_of` are sources of the same dataset, which is loaded once for both.
    """

    workspace: Workspace
    settings: TrainStudent  # of any of the students: in what they come from all are alike
    source: data.Source
    soft: SoftTargets | None
    teachers_model: str | None
    reporter: Reporter
    compiled: Compiled = field(default_factory=dict)
    dataset_of: StudentInputs | None = None

    @classmethod
    def open(cls, workspace: Workspace, settings: TrainStudent, reporter: Reporter) -> StudentInputs:
        """Find what a student's settings name; warns of what is stale.

        Raises:
            KdistillError: if there are no soft targets, or they are damaged, or the dataset is none.
        """
        model = None
        given = settings.data
        source = None if given is None else data.resolve(given, option="dataset", cache=workspace.cache)
        at_hand = {source.identity().digest} if source and settings.objective.alpha < 1.0 else ()
        soft = (
            None
            if settings.objective.alpha == 1.0
            else _soft_targets(workspace, settings.soft_targets, reporter, at_hand)
        )
        if source is None or settings.model is None:
            recorded, model = _from_teacher(workspace, soft, settings.soft_targets)
            source = source or data.resolve(recorded, cache=workspace.cache)
        return cls(workspace, settings, source, soft, model, reporter)

    def model(self, settings: TrainStudent) -> model_sources.ModelSource:
        """A student's network; without a name its teacher's architecture, and not the weights that one began with.

        Raises:
            KdistillError: if a file or a module of it is not there, or nothing says what it is.
        """
        if settings.model is not None:
            return model_sources.resolve(settings.model, settings.weights)
        if self.teachers_model is None:
            raise UsageError(
                "--model is missing: a teacher from outside doesn't say what network its student has; --model mlp-800, "
                "say"
            )
        return model_sources.resolve(self.teachers_model, settings.weights or NEW_WEIGHTS)

    def soft_for(self, settings: TrainStudent) -> SoftTargets | None:
        """The soft targets that a student learns from, None at alpha 1."""
        return None if settings.objective.alpha == 1.0 else self.soft

    def temperature(self, settings: TrainStudent) -> float | None:
        """A student's T, None where it has no use for one."""
        soft = self.soft_for(settings)
        objective = settings.objective
        return (objective.temperature or soft.temperature) if soft and LOSSES[objective.loss].temperature else None

    def objective(self, settings: TrainStudent) -> Objective:
        """A student's objective with its temperature filled in."""
        return replace(settings.objective, temperature=self.temperature(settings))

    def identity(self, settings: TrainStudent) -> Manifest:
        """What a student is made from, for its manifest."""
        soft, model = self.soft_for(settings), self.model(settings)
        inputs = {"dataset": self._dataset_identity, **model.inputs()}
        if soft:
            inputs |= {"soft_targets": Input(settings.soft_targets, soft.digest), **self._transfer_identities}
        return Manifest(
            kind="student",
            settings=settings.recorded() | {"temperature": self.temperature(settings)} | model.settings(),
            inputs=inputs,
        )

    def temperature_warning(self, settings: TrainStudent) -> str | None:
        """Why what a student is told at its T is not exactly what its teacher said, in words."""
        soft, temperature = self.soft_for(settings), self.temperature(settings)
        if soft is None or temperature == soft.temperature or soft.exact_temperature:
            return None
        of = "mean" if soft.form.top_k is None else "rest"
        at = "without a T" if temperature is None else f"at T = {temperature:g}"
        return f"is trained {at} from {soft.path}, whose {of} was taken at T = {soft.temperature:g}: there it is exact"

    def make(
        self,
        artifact: Artifact,
        identity: Manifest,
        settings: TrainStudent,
        *,
        reporter: Reporter,
        events: Path | None = None,
    ) -> Manifest:
        """Train a student, and put it in its place.

        Raises:
            KdistillError: if the soft targets are not of these rows, or training fails.
        """
        from kdistill.training import artifact as networks

        soft = self.soft_for(settings)
        return networks.make(
            artifact,
            identity,
            dataset=self.dataset,
            model=self.model(settings),
            settings=settings.training,
            objective=self.objective(settings),
            reporter=reporter,
            events=events,
            lesson=self.lesson(settings),
            compiled=self.compiled,
            results={"teacher": soft.teacher if soft else None},
        )

    @cached_property
    def dataset(self) -> data.Dataset:
        if self.dataset_of:
            return self.dataset_of.dataset
        dataset = self.source.load()
        for warning in dataset.warnings:
            self.reporter.warn(warning)
        return dataset

    @cached_property
    def _dataset_identity(self) -> Input:
        return self.source.identity()

    @cached_property
    def _transfer_identities(self) -> Mapping[str, Input]:
        assert self.soft is not None
        return {role: source.identity() for role, source in transfer_sources(self.soft.manifest).items()}

    def lesson(self, settings: TrainStudent) -> TrainingRows:
        """The rows that a student is to learn from, and what it is told of them.

        Raises:
            KdistillError: if the file is of other classes or rows, or has no labels where some are needed.
        """
        if self.soft_for(settings) is None:
            return self._hard
        if settings.objective.alpha > 0 and not self._soft.rows.labelled:
            assert self.soft is not None
            raise KdistillError(
                f"the transfer set of {self.soft.path} has no labels, and alpha, the weight of hard labels, is "
                f"{settings.objective.alpha:g}: --alpha 0"
            )
        return replace(self._soft, permuted=settings.permute_soft_targets)

    @cached_property
    def _hard(self) -> TrainingRows:
        """The dataset's training rows."""
        from kdistill.training.artifact import TrainingRows

        keys = self.training_keys if self.settings.training.validation_fraction else None
        return self._selected(TrainingRows(self.dataset.train, keys))

    @cached_property
    def training_keys(self) -> NDArray[np.uint8]:
        """The row keys of the dataset's training rows, (rows, 16)."""
        return self.dataset.train.keys()

    @cached_property
    def _soft(self) -> TrainingRows:
        """The rows that the file speaks of, each joined with what it says of it."""
        from kdistill.training.artifact import TrainingRows

        assert self.soft is not None
        if self.soft.classes != self.dataset.classes:
            raise KdistillError(
                f"{self.soft.path} has soft targets of {self.soft.classes} classes, and {self.dataset.name} has "
                f"{self.dataset.classes}: {self._remedy}"
            )
        rows = transfer_set(self.soft.manifest, self.dataset, self.workspace.cache)
        for warning in rows.warnings:
            self.reporter.warn(warning)
        keys = self.training_keys if rows is self.dataset.train else rows.keys()
        named = " + ".join(source.name for source in transfer_sources(self.soft.manifest).values())
        places = self.soft.join(keys, rows.labels, f"training rows of {named or self.dataset.name}", self._remedy)
        return self._selected(
            TrainingRows(rows, keys, AlignedSoftTargets(self.soft, places), named or None, self.soft.views)
        )

    def _selected(self, lesson: TrainingRows) -> TrainingRows:
        selection = self.settings.selection
        keep = data.selected(lesson.rows, selection, self.dataset, lesson.keys, reporter=self.reporter)
        return lesson.chosen(keep)

    @property
    def _remedy(self) -> str:
        """The command that makes the soft targets fit the dataset."""
        assert self.soft is not None
        artifact = self.workspace.soft_targets(self.settings.soft_targets)
        if self.settings.dataset:
            return f"{artifact.command} --dataset {shlex.quote(self.dataset.name)}"
        return artifact.command_for(self.soft.manifest)


def _soft_targets(workspace: Workspace, name: str, reporter: Reporter, at_hand: Collection[str]) -> SoftTargets:
    artifact = workspace.soft_targets(name)
    soft = SoftTargets.open(artifact)
    if soft is None:
        raise KdistillError(
            f"there are no soft targets {name!r} in {artifact.path.parent}: {artifact.command}; a student of "
            "hard labels alone needs none, train-student --alpha 1"
        )
    for reason in freshness.stale(workspace, soft.manifest, at_hand):
        reporter.warn(f"{artifact} is stale, {reason}: {artifact.command_for(soft.manifest)}")
    return soft


def _from_teacher(workspace: Workspace, soft: SoftTargets | None, name: str) -> tuple[str, str | None]:
    """The dataset and the network that a student has unless told otherwise: those of its teacher.

    A student of hard labels has no teacher of its own: it takes after the soft targets that its siblings learn from,
    or else the only teacher there is, so that it can be compared with them.
    """
    soft = soft or SoftTargets.open(workspace.soft_targets(name))
    if soft:
        return soft.manifest.inputs["dataset"].name, soft.model
    teachers = workspace.teachers()
    if not teachers:
        return TrainTeacher.dataset, TrainTeacher.model
    if len(teachers) > 1:
        names = ", ".join(teacher.name for teacher in teachers)
        raise KdistillError(f"there are several teachers ({names}): name what this student has, --dataset and --model")
    standing = teachers[0].require()
    return standing.inputs["dataset"].name, standing.settings["model"]
