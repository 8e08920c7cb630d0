"""`kdistill train-teacher`: train a teacher on hard labels."""

from __future__ import annotations

from kdistill import data
from kdistill.console import Reporter
from kdistill.networks.sources import resolve_model
from kdistill.settings import TrainTeacher
from kdistill.stages.common import announce_data, announce_rerun, reason_to_run
from kdistill.stages.result import Result
from kdistill.training.workers import Workers
from kdistill.workspace import Input, Manifest, Workspace, commands


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
        KdistillError: If the dataset or the network cannot be loaded, or training fails.
    """
    workers = Workers.here()
    reporter = workers.reporter(reporter)
    source = data.resolve(settings.data, option="dataset", cache=workspace.cache)
    model = resolve_model(settings.model, settings.weights)
    artifact = workspace.teacher(settings.name)
    identity = Manifest(
        kind="teacher",
        settings=settings.recorded() | model.settings(),
        inputs=(Input("dataset", source.name, source.digest()), *model.inputs()),
    )
    reason = reason_to_run(artifact, identity, force=force, reporter=reporter, tracking=settings.tracking)
    if reason is None:
        return Result(artifact, artifact.require())
    dataset = source.load()
    announce_data(reporter, dataset)
    announce_rerun(artifact, reason, reporter)

    from kdistill.training.run import train_network

    manifest = train_network(
        artifact,
        identity,
        dataset=dataset,
        model=model,
        settings=settings.training,
        objective=settings.objective,
        reporter=reporter,
        tracking=settings.tracking,
        show_layers=True,
        workers=workers,
    )
    reporter.say(f"Next: {commands.after_teacher(workspace.root, settings.name, dataset.task.name)}")
    return Result(artifact, manifest)
