"""`kdistill train-teacher`: a dataset to a trained network."""

from __future__ import annotations

from kdistill import data
from kdistill.console import Reporter
from kdistill.networks import sources as model_sources
from kdistill.settings import TrainTeacher
from kdistill.stages import announce, up_to_date
from kdistill.stages.result import Result
from kdistill.workspace import Manifest, Workspace, commands


def run(
    workspace: Workspace,
    settings: TrainTeacher = TrainTeacher(),
    *,
    force: bool = False,
    reporter: Reporter = Reporter(),
) -> Result:
    """Train a teacher on hard labels.

    Reads: the dataset.
    Writes: `teachers/NAME/`.

    Raises:
        KdistillError: if the dataset or the network is none, or training fails.
    """
    source = data.resolve(settings.data, option="dataset", cache=workspace.cache)
    model = model_sources.resolve(settings.model, settings.weights)
    artifact = workspace.teacher(settings.name)
    identity = Manifest(
        kind="teacher",
        settings=settings.recorded() | model.settings(),
        inputs={"dataset": source.identity(), **model.inputs()},
    )
    events = workspace.events(artifact) if settings.tensorboard else None
    reason = artifact.out_of_date(identity)
    if up_to_date(artifact, identity, reason, force=force, reporter=reporter, events=events):
        return Result(artifact, artifact.require())
    dataset = source.load()
    for warning in dataset.warnings:
        reporter.warn(warning)
    announce(artifact, reason, reporter)

    from kdistill.training import artifact as networks

    manifest = networks.make(
        artifact,
        identity,
        dataset=dataset,
        model=model,
        settings=settings.training,
        objective=settings.objective,
        reporter=reporter,
        events=events,
        show_layers=True,
    )
    reporter.say(f"next: {commands.next_soften(workspace.root, settings.name)}")
    return Result(artifact, manifest)
