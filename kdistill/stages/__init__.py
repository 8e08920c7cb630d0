"""One file a subcommand: `run(workspace, settings, ...)` does it; nothing here parses or exits."""

from __future__ import annotations

from pathlib import Path

from kdistill import unfinished
from kdistill.console import Reporter
from kdistill.workspace import LOOSE, Artifact, Manifest


def up_to_date(
    artifact: Artifact,
    identity: Manifest,
    reason: str | None,
    *,
    force: bool,
    reporter: Reporter,
    events: Path | None = None,
) -> bool:
    """Whether a stage has nothing to do; says so, or why not.

    Args:
        artifact: what the stage makes.
        identity: what it is made from.
        reason: why it must be made again, None if it need not.
        force: make it all the same, and discard interrupted work on something else.
        reporter: hears of it.
        events: where TensorBoard's event files of what is up to date go, if any are wanted.

    Raises:
        KdistillError: if the artifact is a link, or interrupted work would be discarded.
    """
    artifact.refuse_links()
    if reason is None and not force:
        unfinished.tidy(artifact, identity)
        reporter.say(f"{artifact} is up to date ({artifact.path}); --force makes it again")
        if events:
            from kdistill.tensorboard import show_history

            show_history(artifact, events)
        return True
    announce(artifact, identity, reason, force=force, reporter=reporter)
    return False


def announce(artifact: Artifact, identity: Manifest, reason: str | None, *, force: bool, reporter: Reporter) -> None:
    """Say why an artifact that stands is made again; to be called when nothing is left that refuses it.

    Args:
        artifact: what the stage makes.
        identity: what it is made from.
        reason: why it must be made again, None if `--force` is the only reason.
        force: discard interrupted work on something else.
        reporter: prints the line.

    Raises:
        KdistillError: if the artifact is a link, or interrupted work would be discarded.
    """
    artifact.refuse_links()
    if not force:
        unfinished.protect(artifact, identity)
    if artifact.path.exists() and artifact.kind not in LOOSE:
        reporter.say(f"makes {artifact} again: {reason or '--force'}")
