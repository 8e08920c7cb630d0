"""`kdistill promote`: a student of a sweep, copied to the workspace's students."""

from __future__ import annotations

import shutil

from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.settings import Promote
from kdistill.stages import find_networks
from kdistill.stages.result import Result
from kdistill.workspace import Workspace, digest, exchange, flush


def run(workspace: Workspace, settings: Promote, *, force: bool = False, reporter: Reporter = Reporter()) -> Result:
    """Copy a student of a sweep, with its manifest: `train-student` with the same settings finds it up to date.

    Reads: `sweeps/SWEEP/students/STUDENT/`.
    Writes: `students/NAME/`.

    Args:
        workspace: where both are.
        settings: which student, and its new name.
        force: replace another student that has the name.
        reporter: hears of it.

    Returns:
        The manifest of both.

    Raises:
        KdistillError: if there is no such student, it is damaged, or another student has the name.
    """
    (origin,) = find_networks(workspace, settings.student, "promote", option="student")
    manifest = origin.require()
    artifact = workspace.student(settings.promoted)
    if artifact.path.exists() and not force:
        if artifact.manifest() != manifest:
            raise KdistillError(
                f"{artifact} is another student: choose another --name, or replace it with "
                f"{workspace.command('promote')} --student {settings.student} --name {artifact.name} --force"
            )
        if artifact.broken(manifest) is None:
            reporter.say(f"{artifact} is up to date ({artifact.path})")
            return Result(artifact, manifest)
    with artifact.writing() as staging:
        for path in origin.path.iterdir():
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, staging.path / path.name)
        copied = all(digest(staging.path / name) == recorded for name, recorded in manifest.outputs.items())
        if not copied or origin.manifest() != manifest:
            raise KdistillError(f"{origin} was replaced while it was copied: run the command again")
        flush(staging.path)
        exchange(staging.path, artifact.path)
    reporter.say(f"wrote {artifact.path}, a copy of {origin.path}")
    return Result(artifact, manifest)
