"""`kdistill promote`: copy a student of a sweep to the students of the workspace."""

from __future__ import annotations

import shutil

from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.settings import Promote
from kdistill.stages.common import find_networks
from kdistill.stages.result import Result
from kdistill.workspace import Workspace, WouldWrite, commands, digest, exchange, flush


def run(workspace: Workspace, settings: Promote, *, force: bool = False, reporter: Reporter = Reporter()) -> Result:
    """Copy a student of a sweep with its manifest, so that `train-student` with its settings finds it up to date.

    Reads: `sweeps/SWEEP/students/STUDENT/`.
    Writes: `students/NAME/`.

    Args:
        workspace: The workspace of the sweep and the copy.
        settings: The student, and the name of the copy.
        force: Replace another student that has the name.
        reporter: Prints the progress.

    Raises:
        KdistillError: If the student is missing or damaged, or if another student has the name.
    """
    (original,) = find_networks(workspace, settings.student, "promote", option="student")
    manifest = original.require()
    artifact = workspace.student(settings.promoted)
    if artifact.path.exists() and not force:
        if artifact.manifest() != manifest:
            raise KdistillError(
                f"{artifact} is another student: pass another --name, or replace it with "
                f"{commands.command(workspace.root, 'promote', student=settings.student, name=artifact.name)} --force"
            )
        if artifact.damage(manifest) is None:
            if workspace.dry_run:
                raise WouldWrite(artifact, None)
            reporter.say(f"Up to date: {artifact.place}")
            return Result(artifact, manifest)
    with artifact.writing() as staging:
        for path in original.path.iterdir():
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, staging.path / path.name)
        copied = all(digest(staging.path / name) == recorded for name, recorded in manifest.outputs.items())
        if not copied or original.manifest() != manifest:
            raise KdistillError(f"{original} was replaced while it was copied: run the command again")
        flush(staging.path)
        exchange(staging.path, artifact.path)
    reporter.say(f"Wrote {artifact.path}, a copy of {original.path}")
    return Result(artifact, manifest)
