"""`kdistill train-student`: train a student from soft targets, or from hard labels only."""

from __future__ import annotations

from kdistill.console import Reporter
from kdistill.settings import TrainStudent
from kdistill.stages.common import announce_rerun, reason_to_run
from kdistill.stages.result import Result
from kdistill.stages.student_inputs import StudentInputs
from kdistill.training.workers import Workers
from kdistill.workspace import Workspace, commands


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
    reporter = workers.reporter(reporter)
    inputs = StudentInputs.open(workspace, settings, reporter)
    artifact, identity = workspace.student(settings.name), inputs.identity(settings)
    reason = reason_to_run(artifact, identity, force=force, reporter=reporter, tracking=settings.tracking)
    if reason is None:
        return Result(artifact, artifact.require())
    inputs.training_rows(settings)  # checks that the soft targets fit the rows
    announce_rerun(artifact, reason, reporter)
    if warning := inputs.temperature_warning(settings):
        reporter.warn(warning)
    manifest = inputs.train(
        artifact, identity, settings, reporter=reporter, tracking=settings.tracking, workers=workers
    )
    next_plot = commands.command(workspace.root, "plot", soft_targets=settings.soft_targets)
    reporter.say(f"Next: {next_plot} && {commands.command(workspace.root, 'evaluate')}")
    return Result(artifact, manifest)
