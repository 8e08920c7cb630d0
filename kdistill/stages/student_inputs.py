"""What students are trained from: a dataset and soft targets, opened once for all students that use them."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from kdistill import data
from kdistill.console import Reporter
from kdistill.errors import KdistillError, UsageError
from kdistill.networks.sources import ModelSource, resolve_model
from kdistill.settings import LOSSES, NEW_WEIGHTS, Objective, Tracking, TrainStudent, TrainTeacher
from kdistill.soft_targets import SoftTargets, align, transfer_set, transfer_sources
from kdistill.stages.common import announce_data
from kdistill.stages.inputs import staleness
from kdistill.tasks import Task
from kdistill.training.training_rows import TrainingRows
from kdistill.training.workers import Workers
from kdistill.workspace import Artifact, Input, Manifest, MissingArtifactError, Workspace

if TYPE_CHECKING:
    from kdistill.training.run import Compiled


@dataclass(frozen=True, eq=False)
class StudentInputs:
    """A dataset and soft targets for one or more students.

    Attributes:
        workspace: where the soft targets are.
        settings: those of any of the students, which have the same dataset, soft targets and row selection.
        source: the dataset.
        digest: of the dataset.
        soft: the soft targets; None if all students learn from hard labels only.
        teacher_model: the teacher's architecture, for students without a `model`; None if it is unknown.
        reporter: prints warnings.
        compiled: trainers that students of the same architecture share.
        same_dataset_as: inputs with the same dataset, which is loaded once for both.
    """

    workspace: Workspace
    settings: TrainStudent
    source: data.Source
    digest: str
    soft: SoftTargets | None
    teacher_model: str | None
    reporter: Reporter
    compiled: Compiled = field(default_factory=dict)
    same_dataset_as: StudentInputs | None = None

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        settings: TrainStudent,
        reporter: Reporter,
        same_dataset_as: StudentInputs | None = None,
    ) -> StudentInputs:
        """Open what a student's settings name, and warn of stale soft targets.

        Raises:
            KdistillError: if there are no soft targets, they are damaged, or the dataset does not exist.
        """
        model = soft = source = digest = None
        if same_dataset_as:
            source, digest = same_dataset_as.source, same_dataset_as.digest
        elif settings.data is not None:
            source = data.resolve(settings.data, option="dataset", cache=workspace.cache)
            digest = source.digest()
        if settings.objective.alpha < 1:
            soft = _open_soft_targets(workspace, settings.soft_targets, reporter, (digest,) if digest else ())
        if source is None or settings.model is None:
            teacher_dataset, model = _from_teacher(workspace, soft, settings.soft_targets)
            source = source or data.resolve(teacher_dataset, cache=workspace.cache)
        digest = digest or source.digest()
        return cls(workspace, settings, source, digest, soft, model, reporter, same_dataset_as=same_dataset_as)

    @cached_property
    def dataset(self) -> data.Dataset:
        """The dataset. Its warnings are printed when it is loaded."""
        if self.same_dataset_as:
            return self.same_dataset_as.dataset
        dataset = self.source.load()
        announce_data(self.reporter, dataset)
        return dataset

    @property
    def task(self) -> Task:
        """The task of the dataset."""
        return self.soft.task if self.soft else self.dataset.task

    def model(self, settings: TrainStudent) -> ModelSource:
        """Return a student's network: by default the teacher's architecture with new weights.

        Raises:
            KdistillError: if its file or module does not exist.
            UsageError: if the teacher's architecture is needed and not known.
        """
        if settings.model is not None:
            return resolve_model(settings.model, settings.weights)
        if self.teacher_model is None:
            raise UsageError(
                "cannot infer the student's architecture from an external teacher: pass --model, e.g. --model mlp-800"
            )
        return resolve_model(self.teacher_model, settings.weights or NEW_WEIGHTS)

    def objective(self, settings: TrainStudent) -> Objective:
        """Return a student's objective, with the loss of the task and the temperature of the soft targets by default.

        The temperature is None if the loss does not depend on it.

        Raises:
            UsageError: if an option does not apply to the task.
        """
        soft = self._soft_for(settings)
        if soft is None:
            return settings.objective
        objective = settings.objective.for_task(soft.task.name)
        if settings.embedding_size is not None and soft.task.needs_labels:
            raise UsageError(f"--embedding-size does not apply to the task {soft.task.name}: remove it")
        uses_temperature = objective.loss is not None and LOSSES[objective.loss].temperature
        if objective.temperature is not None and not uses_temperature:
            raise UsageError(f"--temperature has no effect with --loss {objective.loss}: remove it")
        return replace(objective, temperature=(objective.temperature or soft.temperature) if uses_temperature else None)

    def identity(self, settings: TrainStudent) -> Manifest:
        """Return the manifest of a student before it is trained: its settings and inputs."""
        soft, model = self._soft_for(settings), self.model(settings)
        inputs = [Input("dataset", self.source.name, self.digest), *model.inputs()]
        if soft:
            inputs += [Input("soft_targets", settings.soft_targets, soft.digest), *self._transfer_inputs]
        objective = self.objective(settings)
        resolved = {name: getattr(objective, name) for name in ("alpha", "loss", "temperature")}
        return Manifest(
            kind="student",
            settings=settings.recorded() | resolved | model.settings(),
            inputs=tuple(inputs),
        )

    def temperature_warning(self, settings: TrainStudent) -> str | None:
        """Return why the soft targets are approximate at a student's temperature; None if they are exact."""
        soft, temperature = self._soft_for(settings), self.objective(settings).temperature
        if soft is None or temperature == soft.temperature or soft.exact_at_any_temperature:
            return None
        made = "averaged" if soft.storage.top_k is None else "cut to the largest logits"
        use = (
            f"--loss {self.objective(settings).loss}, which has no T,"
            if temperature is None
            else f"T = {temperature:g}"
        )
        return f"{soft.path}: soft targets were {made} at T = {soft.temperature:g}, so {use} is approximate"

    def training_rows(self, settings: TrainStudent) -> TrainingRows:
        """Return the rows that a student learns from, with their soft targets unless alpha is 1.

        Raises:
            KdistillError: if the soft targets have other classes or rows than the dataset, or labels are missing.
        """
        soft = self._soft_for(settings)
        if soft is None:
            return self._hard_rows
        alpha = self.objective(settings).alpha
        if alpha > 0 and not self._soft_rows.split.labeled_rows:
            raise KdistillError(
                f"the transfer set of {soft.path} has no labels, but --alpha {alpha:g} gives them a weight: use --alpha 0"
            )
        return replace(self._soft_rows, permuted=settings.permute_soft_targets)

    def train(
        self,
        artifact: Artifact,
        identity: Manifest,
        settings: TrainStudent,
        *,
        reporter: Reporter,
        tracking: Tracking = Tracking(),
        workers: Workers = Workers(),
    ) -> Manifest:
        """Train a student, write it as an artifact, and return its manifest; as `train_network`.

        Raises:
            KdistillError: as `training_rows`, or if training fails.
        """
        from kdistill.training.run import train_network

        soft = self._soft_for(settings)
        return train_network(
            artifact,
            identity,
            dataset=self.dataset,
            model=self.model(settings),
            settings=settings.training,
            objective=self.objective(settings),
            reporter=reporter,
            tracking=tracking,
            rows=self.training_rows(settings),
            compiled=self.compiled,
            results={"teacher": soft.teacher if soft else None},
            width=settings.embedding_size,
            workers=workers,
        )

    def _soft_for(self, settings: TrainStudent) -> SoftTargets | None:
        return None if settings.objective.alpha == 1 else self.soft

    @cached_property
    def _transfer_inputs(self) -> list[Input]:
        assert self.soft is not None
        sources = enumerate(transfer_sources(self.soft.manifest), 1)
        return [Input("transfer_set", source.name, source.digest(), index) for index, source in sources]

    @cached_property
    def _hard_rows(self) -> TrainingRows:
        train = self.dataset.train
        keys = train.keys() if self.settings.training.validation_fraction else None
        return self._selected(TrainingRows.of(self.dataset, train, keys=keys))

    @cached_property
    def _soft_rows(self) -> TrainingRows:
        """The rows of the soft-target file, aligned with their soft targets."""
        soft, dataset = self.soft, self.dataset
        assert soft is not None
        artifact = self.workspace.soft_targets(self.settings.soft_targets)
        remedy = artifact.command_for(soft.manifest)
        if self.settings.dataset:
            remedy = f"{artifact.command} --dataset {shlex.quote(dataset.name)}"
        if soft.task is not dataset.task:
            raise KdistillError(
                f"{soft.path} was made for the task {soft.task.name}, but {dataset.name} is read for the task "
                f"{dataset.task.name}: pass --task {soft.task.name}, or {remedy}"
            )
        if dataset.outputs not in (None, soft.classes):
            raise KdistillError(
                f"{soft.path} has soft targets of {soft.classes} {soft.task.plural}, but {dataset.name} has "
                f"{dataset.outputs}: {remedy}"
            )
        split = transfer_set(soft.manifest, dataset, self.workspace.cache)
        announce_data(self.reporter, split)
        source = " + ".join(each.name for each in transfer_sources(soft.manifest)) or None
        keys = split.keys()
        aligned = align(soft, keys, split.labels, f"training rows of {source or dataset.name}", remedy)
        fields = {"keys": keys, "teacher": aligned, "source": source, "views": soft.views}
        return self._selected(TrainingRows.of(dataset, split, **fields))

    def _selected(self, rows: TrainingRows) -> TrainingRows:
        selection = self.settings.selection
        mask = data.selection_mask(rows.split, selection, self.dataset, rows.keys)
        if summary := data.describe_selection(rows.split, selection, mask):
            self.reporter.say(summary)
        return rows.subset(mask)


def _open_soft_targets(
    workspace: Workspace, name: str, reporter: Reporter, known_digests: Collection[str]
) -> SoftTargets:
    """Open the soft targets of a name, and warn if they are stale."""
    artifact = workspace.soft_targets(name)
    soft = SoftTargets.open(artifact)
    if soft is None:
        raise MissingArtifactError(
            f"no soft targets {name!r} in {artifact.path.parent}: run {artifact.command}, or train from hard labels only "
            "with --alpha 1",
            artifact,
        )
    for reason in staleness(workspace, known_digests).reasons(soft.manifest):
        reporter.warn(f"{artifact} is stale, {reason}: {artifact.command_for(soft.manifest)}")
    return soft


def _from_teacher(workspace: Workspace, soft: SoftTargets | None, name: str) -> tuple[str, str | None]:
    """Return the teacher's dataset and architecture, which are the student's by default.

    To be comparable with students that have one, it uses the teacher of the
    soft targets of this name, or else the only teacher in the workspace, or else the defaults of train-teacher.
    """
    soft = soft or SoftTargets.open(workspace.soft_targets(name))
    if soft:
        return soft.manifest.require_input("dataset").name, soft.model
    teachers = workspace.artifacts("teacher")
    if not teachers:
        return TrainTeacher.dataset, TrainTeacher.model
    if len(teachers) > 1:
        names = ", ".join(teacher.name for teacher in teachers)
        raise KdistillError(f"several teachers in {workspace.root} ({names}): choose with --dataset and --model")
    manifest = teachers[0].require()
    return manifest.require_input("dataset").name, manifest.settings["model"]
