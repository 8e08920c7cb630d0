"""`kdistill train-student`: a soft-target file, and the inputs it speaks of, to a trained network."""

from __future__ import annotations

from dataclasses import asdict

from kdistill import data, freshness, model_sources
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.settings import NEW_WEIGHTS, TrainStudent, TrainTeacher
from kdistill.soft_targets import SoftTargets
from kdistill.stages import up_to_date
from kdistill.workspace import Input, Manifest, Workspace


def run(workspace: Workspace, settings: TrainStudent, *, force: bool, reporter: Reporter) -> Manifest:
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
    source, model = data.resolve(dataset_name), model_sources.resolve(model_name, weights)
    artifact = workspace.student(settings.name)
    temperature = (settings.temperature or soft.temperature) if soft else None
    inputs = {"dataset": source.identity(), **model.inputs()}
    if soft:
        inputs["soft_targets"] = Input(settings.soft_targets, soft.digest)
    identity = Manifest(
        kind="student",
        settings={
            **model.settings(),
            "alpha": settings.alpha,
            "temperature": temperature,
            **asdict(settings.training),
        },
        inputs=inputs,
    )
    if up_to_date(artifact, artifact.out_of_date(identity), force=force, reporter=reporter):
        return artifact.require()
    dataset = source.load()
    keys = teacher_logits = None
    if soft:
        if soft.classes != dataset.classes:
            raise KdistillError(
                f"{soft.path} has soft targets of {soft.classes} classes, and {dataset.name} has {dataset.classes}: "
                f"kdistill soften --dataset {dataset.name}"
            )
        keys = dataset.train.keys()
        teacher_logits = soft.join(keys, dataset.train.labels, dataset.name)

    from kdistill import networks
    from kdistill.training import Objective

    manifest = networks.make(
        artifact,
        identity,
        dataset=dataset,
        model=model,
        settings=settings.training,
        objective=Objective(settings.alpha, temperature or 1.0),
        reporter=reporter,
        keys=keys,
        teacher_logits=teacher_logits,
        results={"teacher": soft.manifest.inputs["teacher"].name if soft else None},
    )
    reporter.say("next: kdistill plot, kdistill evaluate")
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


def _from_teacher(workspace: Workspace, soft: SoftTargets | None, name: str) -> tuple[str, str]:
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
