"""Rows on their way to a network: held on the device whole, or streamed through a shuffle buffer.

Which of the two depends on the data's size and on a limit that is part of a run's settings, never on what memory
happens to be free: the order of rows is a pure function of seed and epoch, in either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import tf
from kdistill.data import NO_LABEL
from kdistill.data.augmentation import Views
from kdistill.data.readers import Rows
from kdistill.soft_targets import AlignedSoftTargets, Logits

T = TypeVar("T")

BUFFERS = 16  # this part of the limit is one buffer: one is filled while another is used, and copies are made
PIECES = 16  # a buffer is put together from so many places at least, where rows can be read from any place


class Buffer(NamedTuple):
    """Tensors of some rows.

    `inputs` (rows, ...) and `labels` (rows,); `soft`, what the teacher said, in as many tensors as its form has;
    `transforms` (rows, 8), how to make the inputs those of a view, none where they are taken as they are.
    """

    inputs: Any
    labels: Any
    soft: tuple[Any, ...] = ()
    transforms: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Examples:
    """Rows to train on, or to be judged by.

    `inputs` (rows, ...), `labels` (rows,) with `NO_LABEL` for none, and `teacher`, the logits to match, where there are
    such. Where `views` of them are to be seen, `keys` are their row keys, (rows, 16).
    """

    inputs: Rows
    labels: NDArray[np.int64]
    teacher: AlignedSoftTargets | Logits | None = None
    views: Views | None = None
    keys: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> int:
        return int((self.labels != NO_LABEL).sum())

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.labels.nbytes + (self.teacher.nbytes if self.teacher else 0)


class Feed:
    """Examples as buffers of tensors: one that is held, or one after the other.

    Args:
        examples: the rows.
        batch_size: buffers hold a multiple of it, so that only an epoch's last batch is short.
        memory: bytes up to which examples are held.
    """

    def __init__(self, examples: Examples, batch_size: int, memory: int) -> None:
        self.examples = examples
        self.held = examples.nbytes <= memory
        row_bytes = max(1, examples.nbytes // max(1, len(examples)))
        self.buffer_rows = max(1, memory // BUFFERS // row_bytes // batch_size) * batch_size
        self._view: int | None = None
        self._of_view: tuple[tuple[Any, ...], tuple[Any, ...]] = (), ()

    def __str__(self) -> str:
        megabytes = f"{self.examples.nbytes / 1e6:,.0f} MB"
        if self.held:
            return f"{megabytes} held in memory"
        return f"{megabytes} streamed through a shuffle buffer of {self.buffer_rows:,} rows"

    @cached_property
    def _rows(self) -> tuple[Any, Any]:
        """All inputs and labels, where they are held."""
        return tf.constant(self.examples.inputs.read()), tf.constant(self.examples.labels, tf.int32)

    def _whole(self, view: int) -> Buffer:
        if view != self._view:
            self._of_view = self._seen(np.arange(len(self.examples)), view)
            self._view = view
        return Buffer(*self._rows, *self._of_view)

    def shuffled(self, random: np.random.Generator, epoch: int) -> Iterator[tuple[Buffer, NDArray[np.int64]]]:
        """An epoch's buffers, and for each the order in which to take its rows."""
        view = self.examples.views.of_epoch(epoch) if self.examples.views else 0
        if self.held:
            yield self._whole(view), random.permutation(len(self.examples))
            return
        step = max(1, self.buffer_rows // PIECES)
        starts = np.arange(0, len(self.examples), step)
        if self.examples.inputs.seekable:
            starts = random.permutation(starts)
        for buffer in _ahead(self._buffers(starts, step, view)):
            yield buffer, random.permutation(len(buffer.labels))

    def in_order(self) -> Iterator[Buffer]:
        """All rows in buffers, in order, as they are."""
        if self.held:
            yield self._whole(0)
        else:
            starts = np.arange(0, len(self.examples), self.buffer_rows)
            yield from _ahead(self._buffers(starts, self.buffer_rows, 0))

    def _buffers(self, starts: NDArray[np.int64], step: int, view: int) -> Iterator[Buffer]:
        """Buffers of full size but the last, from pieces of `step` rows."""
        size = self.buffer_rows
        pieces: list[tuple[NDArray[Any], NDArray[np.int64]]] = []
        waiting = 0
        for block, places in self._pieces(starts, step):
            pieces.append((block, places))
            waiting += len(places)
            if waiting >= size:
                inputs, rows = (np.concatenate(column) for column in zip(*pieces, strict=True))
                yield self._buffer(inputs[:size], rows[:size], view)
                pieces = [(inputs[size:], rows[size:])]
                waiting -= size
        if waiting:
            inputs, rows = (np.concatenate(column) for column in zip(*pieces, strict=True))
            yield self._buffer(inputs, rows, view)

    def _pieces(self, starts: NDArray[np.int64], step: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        examples = self.examples
        stream = None if examples.inputs.seekable else examples.inputs.blocks(step)
        for start in starts:
            places = np.arange(start, min(start + step, len(examples)))
            block = examples.inputs.part(places[0], places[-1] + 1) if stream is None else next(stream)
            yield block, places

    def _buffer(self, inputs: NDArray[Any], places: NDArray[np.int64], view: int) -> Buffer:
        labels = tf.constant(self.examples.labels[places], tf.int32)
        return Buffer(tf.constant(inputs), labels, *self._seen(places, view))

    def _seen(self, places: NDArray[np.int64], view: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What the teacher said of one view of rows, and how to make that view of them."""
        teacher, views, keys = self.examples.teacher, self.examples.views, self.examples.keys
        soft: tuple[Any, ...] = ()
        if teacher:
            said = teacher.at(places, view if teacher.storage.views else 0)
            top = () if said.top_classes is None else (tf.constant(said.top_classes.astype(np.int32)),)
            soft = (tf.constant(said.values), *top)
        if views is None or keys is None:
            return soft, ()
        return soft, (tf.constant(views.transforms(keys[places], view, self.examples.inputs.shape[1:])),)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made by another thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
