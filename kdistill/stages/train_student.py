"""`kdistill train-student`: train a student from soft targets, or from hard labels only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from kdistill import cluster
from kdistill.cluster import Work
from kdistill.console import Reporter, SilentReporter
from kdistill.settings import TrainStudent
from kdistill.stages.common import announce_rerun, reason_to_run
from kdistill.stages.inputs import require_inputs
from kdistill.stages.result import Result
from kdistill.stages.student_inputs import StudentInputs
from kdistill.training.workers import Workers
from kdistill.workspace import Artifact, Manifest, Workspace, commands


def run(
    workspace: Workspace,
    settings: TrainStudent = TrainStudent(),
    *,
    force: bool = False,
    reporter: Reporter = Reporter(),
) -> Result:
    """Train a student from a soft-target file, or at alpha 1 from hard labels only.

    Reads: `soft-targets/NAME.h5` (not at alpha 1) and the dataset.
    Writes: `students/NAME/`.

    Raises:
        KdistillError: If there are no soft targets, they do not fit the dataset, or training fails.
    """
    workers = Workers.here()
    if settings.cluster.ray is not None:
        workers.refuse("train-student --ray")
    reporter = workers.reporter(reporter)
    inputs = StudentInputs.open(workspace, settings, reporter)
    artifact, identity = workspace.student(settings.name), inputs.identity(settings)
    reason = reason_to_run(artifact, identity, force=force, reporter=reporter, tracking=settings.tracking)
    if reason is None:
        return Result(artifact, artifact.require())
    engine = cluster.engine(settings.cluster)
    inputs.training_rows(settings)  # checks that the soft targets fit the rows
    root = workspace.root.absolute()
    work = Work(partial(map, _training(inputs, artifact, identity, settings)), prepare, (root, settings, identity))
    with engine:
        announce_rerun(artifact, reason, reporter)
        if warning := inputs.temperature_warning(settings):
            reporter.warn(warning)
        manifest = engine.train(work, settings.cluster.workers, root, reporter)
    next_plot = commands.command(workspace.root, "plot", soft_targets=settings.soft_targets)
    reporter.say(f"Next: {next_plot} && {commands.command(workspace.root, 'evaluate')}")
    return Result(artifact, manifest)


def _training(
    inputs: StudentInputs, artifact: Artifact, identity: Manifest, settings: TrainStudent
) -> Callable[[tuple[Workers, Reporter]], Manifest]:
    """Return a function that trains a student as one of some workers, with the reporter of that worker."""

    def train(worker: tuple[Workers, Reporter]) -> Manifest:
        workers, reporter = worker
        return inputs.train(
            artifact, identity, settings, reporter=reporter, tracking=settings.tracking, workers=workers
        )

    return train


def prepare(root: Path, settings: TrainStudent, identity: Manifest) -> Callable[[tuple[Workers, Reporter]], Manifest]:
    """Return the same function in a worker of a cluster, which opens the data and the soft targets itself.

    Raises:
        KdistillError: if this machine has others.
    """
    workspace = Workspace(root)
    require_inputs(workspace, identity)
    inputs = StudentInputs.open(workspace, settings, SilentReporter())
    inputs.training_rows(settings)  # here, before the other workers wait for this one
    return _training(inputs, workspace.student(settings.name), identity, settings)
