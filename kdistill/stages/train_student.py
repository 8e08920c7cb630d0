"""`kdistill train-student`: a soft-target file, and the inputs it speaks of, to a trained network."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from kdistill import data, freshness, model_sources
from kdistill.console import Reporter
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import NEW_WEIGHTS, UNTEMPERED, TrainStudent, TrainTeacher
from kdistill.soft_targets import Joined, SoftTargets, transfer_set, transfer_sources
from kdistill.stages import selected, up_to_date
from kdistill.workspace import Input, Manifest, Workspace

if TYPE_CHECKING:
    from kdistill.networks import Lesson


def run(
    workspace: Workspace,
    settings: TrainStudent = TrainStudent(),
    *,
    force: bool = False,
    reporter: Reporter = Reporter(),
) -> Manifest:
    """Train a student from what a teacher said, or, at alpha 1, from hard labels alone.

    Reads: `soft-targets/NAME.h5` (not at alpha 1), the dataset.
    Writes: `students/NAME/`.

    Raises:
        KdistillError: if there are no soft targets, or they are not of these rows, or training fails.
    """
    soft = None if settings.alpha == 1.0 else _soft_targets(workspace, settings.soft_targets, reporter)
    dataset_name, model_name, weights = settings.dataset, settings.model, settings.weights
    if dataset_name is None or model_name is None:
        upstream = _from_teacher(workspace, soft, settings.soft_targets)
        dataset_name = dataset_name or upstream[0]
        if model_name is None:  # the teacher's architecture, and not the weights it began with
            model_name, weights = upstream[1], weights or NEW_WEIGHTS
    if model_name is None:
        raise UsageError(
            "--model is missing: a teacher from outside doesn't say what network its student has; --model mlp-800, say"
        )
    source, model = data.resolve(dataset_name), model_sources.resolve(model_name, weights)
    artifact = workspace.student(settings.name)
    temperature = (settings.temperature or soft.temperature) if soft and settings.loss not in UNTEMPERED else None
    inputs = {"dataset": source.identity(), **model.inputs()}
    if soft:
        inputs["soft_targets"] = Input(settings.soft_targets, soft.digest)
        inputs |= {role: source.identity() for role, source in transfer_sources(soft.manifest).items()}
    identity = Manifest(
        kind="student",
        settings={
            **model.settings(),
            "alpha": settings.alpha,
            "temperature": temperature,
            **settings.selection.settings(),
            "loss": settings.loss if settings.loss != TrainStudent.loss else None,
            "standardize_logits": settings.standardize_logits or None,
            **asdict(settings.training),
        },
        inputs=inputs,
    )
    events = workspace.events(artifact) if settings.tensorboard else None
    if up_to_date(artifact, artifact.out_of_date(identity), force=force, reporter=reporter, events=events):
        return artifact.require()
    dataset = source.load()

    from kdistill import networks
    from kdistill.training import Objective

    lesson = _lesson(workspace, settings, soft, dataset) if soft else networks.Lesson(dataset.train)
    lesson = lesson.chosen(selected(lesson.rows, settings.selection, dataset, lesson.keys, reporter=reporter))
    if soft and temperature != soft.temperature and not soft.exact_temperature:
        of = "mean" if soft.form.top_k is None else "rest"
        at = "without a T" if temperature is None else f"at T = {temperature:g}"
        reporter.warn(
            f"{artifact} is trained {at} from {soft.path}, whose {of} was taken at T = {soft.temperature:g}: there it "
            "is exact"
        )
    manifest = networks.make(
        artifact,
        identity,
        dataset=dataset,
        model=model,
        settings=settings.training,
        objective=Objective(
            settings.alpha,
            temperature or 1.0,
            settings.loss,
            settings.standardize_logits,
            settings.training.label_smoothing,
        ),
        reporter=reporter,
        events=events,
        lesson=lesson,
        results={"teacher": soft.teacher if soft else None},
    )
    reporter.say(f"next: {workspace.command('plot')}, {workspace.command('evaluate')}")
    return manifest


def _soft_targets(workspace: Workspace, name: str, reporter: Reporter) -> SoftTargets:
    artifact = workspace.soft_targets(name)
    soft = SoftTargets.open(artifact)
    if soft is None:
        raise KdistillError(
            f"there are no soft targets {name!r} in {artifact.path.parent}: {artifact.command}; or --alpha 1 for a "
            "student of hard labels alone"
        )
    for reason in freshness.stale(workspace, soft.manifest):
        reporter.warn(f"{artifact} is stale, {reason}: {artifact.command_for(soft.manifest)}")
    return soft


def _lesson(workspace: Workspace, settings: TrainStudent, soft: SoftTargets, dataset: data.Dataset) -> Lesson:
    """The rows that the file speaks of, each joined with what it says of it.

    Raises:
        KdistillError: if the file is of other classes or rows, or has no labels where some are needed.
    """
    from kdistill.networks import Lesson

    artifact = workspace.soft_targets(settings.soft_targets)
    remedy = artifact.command_for(soft.manifest)
    if settings.dataset:
        remedy = f"{artifact.command} --dataset {shlex.quote(dataset.name)}"
    if soft.classes != dataset.classes:
        raise KdistillError(
            f"{soft.path} has soft targets of {soft.classes} classes, and {dataset.name} has {dataset.classes}: {remedy}"
        )
    rows = transfer_set(soft.manifest, dataset)
    if settings.alpha > 0 and not rows.labelled:
        raise KdistillError(
            f"the transfer set of {soft.path} has no labels, and --alpha {settings.alpha:g} is the weight of hard "
            "labels: --alpha 0"
        )
    keys = rows.keys()
    transfer_set_names = " + ".join(source.name for source in transfer_sources(soft.manifest).values())
    places = soft.join(keys, rows.labels, f"training rows of {transfer_set_names or dataset.name}", remedy)
    return Lesson(rows, keys, Joined(soft, places), transfer_set_names or None, soft.views)


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
