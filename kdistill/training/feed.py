"""Feeds: rows as tensors for the training steps, kept in memory or streamed through a shuffle buffer.

Which of the two depends on the size of the data and on `--memory`, never on the memory that happens to be free. So the
order of the rows is a pure function of the seed and the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import tf
from kdistill.data.read_ahead import read_ahead
from kdistill.training.training_rows import TrainingRows

BUFFERS_PER_LIMIT = 16  # one buffer is used while the next is filled, and both are copied on the way
PIECES_PER_BUFFER = 16  # parts of the data that a buffer mixes, where rows can be read from any position


class Buffer(NamedTuple):
    """Tensors of some rows.

    Attributes:
        inputs: (rows, ...).
        labels: (rows, ...) int32 or float32.
        soft: the teacher's logits as they are stored, and with top k also the classes (rows, k) int32; empty without
            a teacher.
        transforms: (rows, 8) that make the inputs those of a view; empty without views.
        weights: (rows,) float32, of the losses; empty if all rows count the same.
    """

    inputs: Any
    labels: Any
    soft: tuple[Any, ...] = ()
    transforms: tuple[Any, ...] = ()
    weights: tuple[Any, ...] = ()

    def at(self, positions: Any) -> Buffer:
        """Return the rows at some positions, (n,) int32."""
        rows: Buffer = tf.nest.map_structure(lambda each: tf.gather(each, positions), self)
        return rows


class Feed:
    """Rows as buffers of tensors: a single one that is kept in memory, or one after another.

    Args:
        rows: the rows.
        batch_size: buffers have a multiple of this size, so that only the last batch of an epoch is smaller.
        memory: largest data in bytes that is kept in memory.
    """

    def __init__(self, rows: TrainingRows, batch_size: int, memory: int) -> None:
        self.rows = rows
        self.in_memory = rows.nbytes <= memory
        row_bytes = max(1, rows.nbytes // max(1, len(rows)))
        self.buffer_rows = max(1, memory // BUFFERS_PER_LIMIT // row_bytes // batch_size) * batch_size
        self._last_view: dict[int, tuple[tuple[Any, ...], ...]] = {}

    def __str__(self) -> str:
        """Return the size, and how the rows are read."""
        megabytes = f"{self.rows.nbytes / 1e6:,.0f} MB"
        if self.in_memory:
            return f"{megabytes} in memory"
        return f"{megabytes} streamed through a shuffle buffer of {self.buffer_rows:,} rows"

    def shuffled(self, random: np.random.Generator, epoch: int) -> Iterator[tuple[Buffer, NDArray[np.int64]]]:
        """Yield the buffers of an epoch, each with the order of its rows."""
        rows = self.rows
        view = rows.views.for_epoch(epoch) if rows.views else 0
        if self.in_memory:
            yield self._single_buffer(view), random.permutation(len(rows))
            return
        step = max(1, self.buffer_rows // PIECES_PER_BUFFER)
        pieces = np.split(np.arange(len(rows)), range(step, len(rows), step))
        if rows.split.inputs.seekable:
            pieces = [pieces[number] for number in random.permutation(len(pieces))]
        for buffer in read_ahead(self._buffers(np.concatenate(pieces), view)):
            yield buffer, random.permutation(len(buffer.labels))

    def in_order(self) -> Iterator[Buffer]:
        """Yield all rows in buffers, in order and without augmentation."""
        if self.in_memory:
            yield self._single_buffer(0)
        else:
            yield from read_ahead(self._buffers(np.arange(len(self.rows)), 0))

    @cached_property
    def _inputs_and_labels(self) -> tuple[Any, Any]:
        return tf.constant(self.rows.split.inputs.read()), _labels(self.rows.split.labels)

    def _single_buffer(self, view: int) -> Buffer:
        if view not in self._last_view:
            self._last_view = {view: self._of_view(np.arange(len(self.rows)), view)}
        return Buffer(*self._inputs_and_labels, *self._last_view[view])

    def _buffers(self, order: NDArray[np.int64], view: int) -> Iterator[Buffer]:
        """Yield buffers with the rows at some positions. All but the last have `buffer_rows` rows."""
        inputs = self.rows.split.inputs
        stream = None if inputs.seekable else inputs.blocks(self.buffer_rows)
        for first in range(0, len(order), self.buffer_rows):
            positions = order[first : first + self.buffer_rows]
            runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
            block = next(stream) if stream else np.concatenate([inputs.read_range(r[0], r[-1] + 1) for r in runs])
            labels = _labels(self.rows.split.labels[positions])
            yield Buffer(tf.constant(block), labels, *self._of_view(positions, view))

    def _of_view(self, positions: NDArray[np.int64], view: int) -> tuple[tuple[Any, ...], ...]:
        """Return the teacher's logits for one view of some rows, the transforms that make it, and the rows' weights."""
        teacher, views = self.rows.teacher, self.rows.views
        soft: tuple[Any, ...] = ()
        transforms: tuple[Any, ...] = ()
        if teacher:
            logits = teacher.at(positions, view if teacher.storage.views else 0)
            top = () if logits.top_classes is None else (tf.constant(logits.top_classes.astype(np.int32)),)
            soft = (tf.constant(logits.values), *top)
        if views:
            keys, shape = self.rows.row_keys()[positions], self.rows.split.inputs.shape[1:]
            transforms = (tf.constant(views.transforms(keys, view, shape)),)
        weights = self.rows.weights
        of_rows = () if weights is None else (tf.constant(weights[positions]),)
        return soft, transforms, of_rows


def _labels(labels: NDArray[Any]) -> Any:
    return tf.constant(labels, tf.float32 if labels.dtype.kind == "f" else tf.int32)
