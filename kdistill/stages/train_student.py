"""`kdistill train-student`: a soft-target file, and the inputs it speaks of, to a trained network."""

from __future__ import annotations

from kdistill.console import Reporter
from kdistill.settings import TrainStudent
from kdistill.stages import announce, up_to_date
from kdistill.stages.result import Result
from kdistill.training.students import StudentInputs
from kdistill.workspace import Workspace, commands


def run(
    workspace: Workspace,
    settings: TrainStudent = TrainStudent(),
    *,
    force: bool = False,
    reporter: Reporter = Reporter(),
) -> Result:
    """Train a student from what a teacher said, or, at alpha 1, from hard labels alone.

    Reads: `soft-targets/NAME.h5` (not at alpha 1), the dataset.
    Writes: `students/NAME/`.

    Raises:
        KdistillError: if there are no soft targets, or they are not of these rows, or training fails.
    """
    sources = StudentInputs.open(workspace, settings, reporter)
    artifact, identity = workspace.student(settings.name), sources.identity(settings)
    events = workspace.events(artifact) if settings.tensorboard else None
    reason = artifact.out_of_date(identity)
    if up_to_date(artifact, identity, reason, force=force, reporter=reporter, events=events):
        return Result(artifact, artifact.require())
    sources.lesson(settings)
    announce(artifact, reason, reporter)
    if doubt := sources.temperature_warning(settings):
        reporter.warn(f"{artifact} {doubt}")
    manifest = sources.make(artifact, identity, settings, reporter=reporter, events=events)
    following = commands.next_plot(workspace.root, settings.soft_targets), workspace.command("evaluate")
    reporter.say(f"next: {', '.join(following)}")
    return Result(artifact, manifest)
