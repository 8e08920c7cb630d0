"""One file a subcommand: `run(workspace, settings, ...)` does it; nothing here parses or exits."""

from __future__ import annotations

from pathlib import Path

from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.workspace import LOOSE, Artifact, Manifest, Workspace, unfinished

SHOWN_NAMES = 10


def up_to_date(
    artifact: Artifact,
    identity: Manifest,
    reason: str | None,
    *,
    force: bool,
    reporter: Reporter,
    events: Path | None = None,
) -> bool:
    """Whether a stage has nothing to do, which it then says.

    Args:
        artifact: what the stage makes.
        identity: what it is made from.
        reason: why it must be made again, None if it need not.
        force: make it all the same, and discard interrupted work on something else.
        reporter: prints the line.
        events: where TensorBoard's event files of what is up to date go, if any are wanted.

    Raises:
        KdistillError: if the artifact is a link, or interrupted work would be discarded.
    """
    artifact.refuse_links()
    if reason is None and not force:
        unfinished.tidy(artifact, identity)
        reporter.say(f"{artifact} is up to date ({artifact.path}); --force makes it again")
        if events:
            from kdistill.training.tensorboard import write_events

            write_events(artifact, events)
        return True
    if not force:
        unfinished.protect(artifact, identity)
    return False


def announce(artifact: Artifact, reason: str | None, reporter: Reporter) -> None:
    """Say why an artifact that stands is made again. Stages call it after the checks that could refuse the work.

    Args:
        artifact: what the stage makes.
        reason: why it must be made again, None if `--force` is the only reason.
        reporter: prints the line.
    """
    if artifact.path.exists() and artifact.kind not in LOOSE:
        reporter.say(f"makes {artifact} again: {reason or '--force'}")


def find_networks(workspace: Workspace, name: str, command: str, option: str = "network") -> list[Artifact]:
    """The student and the teacher of a name, those of them that are there; or the student of a sweep, `SWEEP/STUDENT`.

    Args:
        workspace: where to look.
        name: as `settings.check_network` lets through.
        command: the subcommand that takes the name, for messages.
        option: its option that takes the name, for messages.

    Raises:
        KdistillError: if there is none, with names that there are and a command.
    """
    sweep = name.rpartition("/")[0]
    there = workspace.sweep_students(sweep) if sweep else [*workspace.students(), *workspace.teachers()]
    names = [f"{sweep}/{one.name}" if sweep else one.name for one in there]
    if name in names:
        return [workspace.student(name)] if sweep else [one for one in there if one.name == name]
    if not names:
        what = f"sweep {sweep!r} with students" if sweep else f"network to {command}"
        remedy = workspace.sweep(sweep).command if sweep else workspace.student("student").command
        raise KdistillError(f"{workspace.root} has no {what}: {remedy}")
    known = ", ".join(names[:SHOWN_NAMES]) + ", ..." * (len(names) > SHOWN_NAMES)
    remedy = f"{workspace.command(command)} --{option} {names[0]}"
    raise KdistillError(f"there is no network {name!r} in {workspace.root}, only {known}: {remedy}")
