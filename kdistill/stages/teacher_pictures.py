"""The picture of a teacher's outputs that `plot` draws: what it shows depends on the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdistill import data
from kdistill.evaluation import metrics
from kdistill.settings import CLASSIFICATION, EMBEDDING, MULTI_LABEL, REGRESSION
from kdistill.soft_targets import SoftTargets, teacher_names
from kdistill.stages.dark_knowledge import dark_knowledge
from kdistill.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    CLASSIFICATION: "dark-knowledge",
    MULTI_LABEL: "average-precision",
    REGRESSION: "predicted-against-true",
    EMBEDDING: "vectors",
}


def teacher_picture(workspace: Workspace, soft: SoftTargets) -> tuple[str, Figure] | None:
    """Return the name of the picture of some soft targets, and the picture; None if it needs labels and there are none."""
    if soft.task.name == CLASSIFICATION:
        return NAMES[CLASSIFICATION], dark_knowledge(workspace, soft)

    from kdistill.evaluation import figures

    dataset = data.resolve(soft.manifest.require_input("dataset").name, cache=workspace.cache).load()
    name, names = NAMES[soft.task.name], dataset.class_names
    teacher = " + ".join(map(data.short_name, teacher_names(soft.manifest)))
    title = f"{data.short_name(dataset.name)}: {teacher} on the {soft.rows:,} rows of the transfer set"
    outputs, labels = soft.logits(), soft.labels
    if soft.task.name == EMBEDDING:
        return name, figures.vectors(outputs, labels, names, title)
    known = ~np.isnan(labels) if soft.task.name == REGRESSION else labels >= 0
    if not known.any():
        return None
    if soft.task.name == MULTI_LABEL:
        return name, figures.average_precisions(metrics.average_precisions(outputs, labels, known), names, title)
    return name, figures.predicted_against_true(outputs, labels, names, title)
