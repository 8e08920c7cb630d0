"""`kdistill train-teacher`: train a teacher on hard labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from kdistill import cluster, data
from kdistill.cluster import Work
from kdistill.console import Reporter
from kdistill.networks.sources import ModelSource, resolve_model
from kdistill.settings import TrainTeacher
from kdistill.stages.common import announce_data, announce_rerun, reason_to_run
from kdistill.stages.inputs import require_inputs
from kdistill.stages.result import Result
from kdistill.training.workers import Workers
from kdistill.workspace import Artifact, Input, Manifest, Workspace, commands


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
    if settings.cluster.ray is not None:
        workers.refuse("train-teacher --ray")
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
    engine = cluster.engine(settings.cluster)
    dataset = source.load()
    announce_data(reporter, dataset)
    root, training = workspace.root.absolute(), _training(artifact, identity, dataset, model, settings)
    work = Work(partial(map, training), prepare, (root, settings, identity))
    with engine:
        announce_rerun(artifact, reason, reporter)
        manifest = engine.train(work, settings.cluster.workers, root, reporter)
    reporter.say(f"Next: {commands.after_teacher(workspace.root, settings.name, dataset.task.name)}")
    return Result(artifact, manifest)


def _training(
    artifact: Artifact, identity: Manifest, dataset: data.Dataset, model: ModelSource, settings: TrainTeacher
) -> Callable[[tuple[Workers, Reporter]], Manifest]:
    """Return a function that trains a teacher as one of some workers, with the reporter of that worker."""

    def train(worker: tuple[Workers, Reporter]) -> Manifest:
        from kdistill.training.run import train_network

        workers, reporter = worker
        return train_network(
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

    return train


def prepare(root: Path, settings: TrainTeacher, identity: Manifest) -> Callable[[tuple[Workers, Reporter]], Manifest]:
    """Return the same function in a worker of a cluster, which opens the data and the network itself.

    Raises:
        KdistillError: if this machine has others.
    """
    workspace = Workspace(root)
    require_inputs(workspace, identity)
    dataset = data.resolve(settings.data, option="dataset", cache=workspace.cache).load()
    model = resolve_model(settings.model, settings.weights)
    return _training(workspace.teacher(settings.name), identity, dataset, model, settings)
