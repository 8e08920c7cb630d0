"""Rows on their way to a network: held on the device whole, or streamed through a shuffle buffer.

Which of the two depends on the data's size and on a limit that is part of a run's settings, never on what memory
happens to be free: the order of rows is a pure function of seed and epoch, in either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import tf
from kdistill.data import NO_LABEL
from kdistill.readers import Rows
from kdistill.soft_targets import Joined
from kdistill.stored_logits import Logits

T = TypeVar("T")
Buffer = tuple[Any, Any, tuple[Any, ...]]  # tensors: inputs, labels, and what the teacher said

BUFFERS = 16  # this part of the limit is one buffer: one is filled while another is used, and copies are made
PIECES = 16  # a buffer is put together from so many places at least, where rows can be read from any place


@dataclass(frozen=True)
class Examples:
    """Rows to train on, or to be judged by.

    `inputs` (rows, ...), `labels` (rows,) with `NO_LABEL` for none, and `teacher`, the logits to match, where there are
    such.
    """

    inputs: Rows
    labels: NDArray[np.int64]
    teacher: Joined | Logits | None = None

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

    def __str__(self) -> str:
        megabytes = f"{self.examples.nbytes / 1e6:,.0f} MB"
        if self.held:
            return f"{megabytes} held in memory"
        return f"{megabytes} streamed through a shuffle buffer of {self.buffer_rows:,} rows"

    @cached_property
    def _whole(self) -> Buffer:
        examples = self.examples
        said = examples.teacher.at(np.arange(len(examples))) if examples.teacher else None
        return _tensors(examples.inputs.read(), examples.labels, said)

    def shuffled(self, random: np.random.Generator) -> Iterator[tuple[Buffer, NDArray[np.int64]]]:
        """An epoch's buffers, and for each the order in which to take its rows."""
        if self.held:
            yield self._whole, random.permutation(len(self.examples))
            return
        step = max(1, self.buffer_rows // PIECES)
        starts = np.arange(0, len(self.examples), step)
        if self.examples.inputs.seekable:
            starts = random.permutation(starts)
        for buffer in _ahead(self._buffers(starts, step)):
            yield buffer, random.permutation(len(buffer[1]))

    def in_order(self) -> Iterator[Buffer]:
        """All rows in buffers, in order."""
        if self.held:
            yield self._whole
        else:
            starts = np.arange(0, len(self.examples), self.buffer_rows)
            yield from _ahead(self._buffers(starts, self.buffer_rows))

    def _buffers(self, starts: NDArray[np.int64], step: int) -> Iterator[Buffer]:
        """Buffers of full size but the last, from pieces of `step` rows."""
        size = self.buffer_rows
        pieces: list[tuple[NDArray[Any], NDArray[np.int64]]] = []
        waiting = 0
        for block, places in self._pieces(starts, step):
            pieces.append((block, places))
            waiting += len(places)
            if waiting >= size:
                inputs, rows = (np.concatenate(column) for column in zip(*pieces, strict=True))
                yield self._buffer(inputs[:size], rows[:size])
                pieces = [(inputs[size:], rows[size:])]
                waiting -= size
        if waiting:
            yield self._buffer(*(np.concatenate(column) for column in zip(*pieces, strict=True)))

    def _pieces(self, starts: NDArray[np.int64], step: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        examples = self.examples
        stream = None if examples.inputs.seekable else examples.inputs.blocks(step)
        for start in starts:
            places = np.arange(start, min(start + step, len(examples)))
            block = examples.inputs.part(places[0], places[-1] + 1) if stream is None else next(stream)
            yield block, places

    def _buffer(self, inputs: NDArray[Any], places: NDArray[np.int64]) -> Buffer:
        teacher = self.examples.teacher
        return _tensors(inputs, self.examples.labels[places], teacher.at(places) if teacher else None)


def _tensors(inputs: NDArray[Any], labels: NDArray[np.int64], said: Logits | None) -> Buffer:
    soft: tuple[Any, ...] = ()
    if said:
        soft = (tf.constant(said.values),)
        if said.top_classes is not None:
            soft += (tf.constant(said.top_classes.astype(np.int32)),)
    return tf.constant(inputs), tf.constant(labels, tf.int32), soft


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made by another thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
