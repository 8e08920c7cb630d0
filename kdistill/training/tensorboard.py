"""Event files for `tensorboard --logdir WORKSPACE`: the numbers of `history.csv`.

They are not part of an artifact. They are in `tensorboard/` in the workspace, where each directory is a run.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdistill.backend import tf
from kdistill.training import history
from kdistill.workspace import Artifact, Manifest

SPLITS = ("train", "validation", "test")
TAGS = {  # charts of columns that are not a measure of a split
    "hard_loss": "loss/train_hard",
    "soft_loss": "loss/train_soft",
    "learning_rate": "run/learning_rate",
    "seconds": "run/seconds",
}


def tag(column: str) -> str | None:
    """Return the chart of a column of the history, e.g. `loss/train`; TensorBoard groups charts by the first part."""
    split, _, measure = column.partition("_")
    return f"{measure}/{split}" if split in SPLITS else TAGS.get(column)


class EventFiles:
    """The event files of one run, with a point per epoch and column.

    Args:
        directory: where the files are written. Files of an earlier run are removed, so that no point is there twice.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        self._epochs = 0
        shutil.rmtree(directory, ignore_errors=True)

    def update(self, rows: Sequence[history.Row]) -> None:
        """Write the epochs that are not in the files yet.

        The training loss of a teacher is a hard loss, so it is drawn in the chart of the students' hard losses too.

        Args:
            rows: the history so far, from the first epoch on.
        """
        new, self._epochs = rows[self._epochs :], len(rows)
        if not new:
            return
        self._writer = self._writer or tf.summary.create_file_writer(str(self._directory))
        with self._writer.as_default():  # flushes at the end
            for row in new:
                for column, value in {"hard_loss": row["train_loss"], **row}.items():
                    if (chart := tag(column)) and not math.isnan(value):
                        _write_scalar(chart, value, int(row["epoch"]))

    def finish(self, manifest: Manifest) -> None:
        """Do nothing: the files are complete."""


def _write_scalar(tag: str, value: float, step: int) -> None:
    """Do what `tf.summary.scalar` does. Since TensorFlow 2.21 that needs the package TensorBoard."""
    scalars = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"}, data_class="DATA_CLASS_SCALAR")
    tf.summary.write(tag, tf.constant(value, tf.float32), step=step, metadata=scalars)


def write_events(artifact: Artifact, directory: Path) -> None:
    """Write the event files of a trained network.

    Raises:
        KdistillError: if its `history.csv` is damaged.
    """
    table = history.read(artifact.path / "history.csv", artifact.remedy).table
    EventFiles(directory).update([dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])
