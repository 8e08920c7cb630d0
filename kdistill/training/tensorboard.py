"""What `tensorboard --logdir workspace` shows: `history.csv` as event files, teachers beside students.

Event files are a view for people, and no part of any artifact: they lie in `tensorboard/` of the workspace, where
TensorBoard makes a run of each directory.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdistill.backend import tf
from kdistill.training import history
from kdistill.workspace import Artifact

TAGS = {  # charts, by column of the history; the part before the slash is TensorBoard's group
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "test_loss": "loss/test",
    "hard_loss": "loss/train_hard",
    "soft_loss": "loss/train_soft",
    "train_accuracy": "accuracy/train",
    "validation_accuracy": "accuracy/validation",
    "test_accuracy": "accuracy/test",
    "learning_rate": "run/learning_rate",
    "seconds": "run/seconds",
}


class Board:
    """The event files of one run, one point an epoch and column; made anew, so that no point is there twice.

    Args:
        directory: where they lie, and nothing else does; what an earlier run left there is removed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        self._epochs = 0
        shutil.rmtree(directory, ignore_errors=True)

    def show(self, rows: Sequence[history.Row]) -> None:
        """Write the epochs that are not there yet, for TensorBoard to see at once.

        A teacher's training loss is of hard labels alone, so it is drawn beside its students' hard losses too.

        Args:
            rows: the history so far, from the first epoch on.
        """
        new, self._epochs = rows[self._epochs :], len(rows)
        if not new:
            return
        self._writer = self._writer or tf.summary.create_file_writer(str(self._directory))
        with self._writer.as_default():  # which flushes it at the end
            for row in new:
                for column, value in {"hard_loss": row["train_loss"], **row}.items():
                    if column in TAGS and not math.isnan(value):
                        _write_scalar(TAGS[column], value, int(row["epoch"]))


def _write_scalar(tag: str, value: float, step: int) -> None:
    """What `tf.summary.scalar` does, which from TensorFlow 2.21 on is there only if TensorBoard is installed."""
    scalars = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"}, data_class="DATA_CLASS_SCALAR")
    tf.summary.write(tag, tf.constant(value, tf.float32), step=step, metadata=scalars)


def show_history(artifact: Artifact, directory: Path) -> None:
    """Write the event files of a network that stands.

    Raises:
        KdistillError: if its `history.csv` is damaged.
    """
    _, table = history.read(artifact.path / "history.csv", artifact.remedy)
    Board(directory).show([dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])
