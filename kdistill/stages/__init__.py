"""One file a subcommand: `run(workspace, settings, ...)` does it; nothing here parses or exits."""

from __future__ import annotations

from pathlib import Path

from kdistill.console import Reporter
from kdistill.workspace import LOOSE, Artifact


def up_to_date(
    artifact: Artifact, reason: str | None, *, force: bool, reporter: Reporter, events: Path | None = None
) -> bool:
    """Whether a stage has nothing to do; says so, or why not.

    Args:
        artifact: what the stage makes.
        reason: why it must be made again, None if it need not.
        force: make it all the same.
        reporter: hears of it.
        events: where TensorBoard's event files of what is up to date go, if any are wanted.
    """
    if reason is None and not force:
        artifact.sweep()
        reporter.say(f"{artifact} is up to date ({artifact.path}); --force makes it again")
        if events:
            from kdistill.tensorboard import show_history

            show_history(artifact, events)
        return True
    announce(artifact, reason, reporter)
    return False


def announce(artifact: Artifact, reason: str | None, reporter: Reporter) -> None:
    """Say why an artifact that stands is made again; to be called when nothing is left that refuses it.

    Args:
        artifact: what the stage makes.
        reason: why it must be made again, None if `--force` is the only reason.
        reporter: prints the line.
    """
    if artifact.path.exists() and artifact.kind not in LOOSE:
        reporter.say(f"makes {artifact} again: {reason or '--force'}")
