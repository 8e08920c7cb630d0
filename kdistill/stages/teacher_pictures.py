"""The picture of a teacher's outputs that `plot` draws: what it shows depends on the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdistill import data
from kdistill.soft_targets import SoftTargets, teacher_names
from kdistill.stages.dark_knowledge import dark_knowledge
from kdistill.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def teacher_picture(workspace: Workspace, soft: SoftTargets) -> tuple[str, Figure] | None:
    """Return the name of the picture of some soft targets, and the picture; None if it needs labels and there are none."""
    task = soft.task
    if task.shows_rows:
        return task.picture, dark_knowledge(workspace, soft)
    dataset = data.resolve(soft.manifest.require_input("dataset").name, cache=workspace.cache).load()
    teacher = " + ".join(map(data.short_name, teacher_names(soft.manifest)))
    title = f"{data.short_name(dataset.name)}: {teacher} on the {soft.rows:,} rows of the transfer set"
    picture = task.draw(soft.logits(), soft.labels, dataset.class_names, title)
    return (task.picture, picture) if picture else None
