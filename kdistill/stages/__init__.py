"""One file a subcommand: `run(workspace, settings, ...)` does it; nothing here parses or exits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.console import Reporter
from kdistill.data import NO_LABEL, Dataset, Split
from kdistill.settings import Selection
from kdistill.workspace import Artifact


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
    if artifact.path.exists() and artifact.kind != "plots":
        reporter.say(f"makes {artifact} again: {reason or '--force'}")
    return False


def selected(
    rows: Split,
    selection: Selection,
    dataset: Dataset,
    keys: NDArray[np.uint8] | None = None,
    *,
    reporter: Reporter,
) -> NDArray[np.bool_]:
    """As `data.selected`, and says how many rows and classes are kept, where not all are asked for."""
    keep = data.selected(rows, selection, dataset, keys)
    if str(selection):
        classes, of_kept = (len(set(labels.tolist()) - {NO_LABEL}) for labels in (rows.labels, rows.labels[keep]))
        which = f", {of_kept} of {classes} classes" if classes else ""
        reporter.say(f"{selection} keeps {int(keep.sum()):,} of {len(rows):,} rows{which}")
    return keep
