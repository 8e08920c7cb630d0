"""Readers: data of some format to rows of inputs, labels and class names; one module a format.

A reader is made from a place and its `Options`, says what it would read (`digest`, without reading more than it must)
and reads it (`contents`). What it hands over is checked in one place, `kdistill.data`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError, UsageError

BLOCK_ROWS = 1000


class Rows(ABC):
    """Inputs (rows, ...), which need not be in memory.

    `seekable` rows can be read from any place; the others only in order, from the first.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seekable: bool = True

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=object))

    @abstractmethod
    def part(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`, both within; not for rows that are not seekable."""

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """All rows in order, `rows` at a time, one block in memory."""
        for start in range(0, len(self), rows):
            yield self.part(start, min(start + rows, len(self)))

    def read(self) -> NDArray[Any]:
        """All rows."""
        whole = np.empty(self.shape, self.dtype)
        start = 0
        for block in self.blocks(BLOCK_ROWS):
            whole[start : start + len(block)] = block
            start += len(block)
        return whole


class Array(Rows):
    """Rows that are in memory already, or mapped there."""

    def __init__(self, values: NDArray[Any], where: str) -> None:
        self.values, self.where = values, where
        self.shape, self.dtype = values.shape, values.dtype

    def part(self, start: int, stop: int) -> NDArray[Any]:
        return finite(np.asarray(self.values[start:stop]), start, self.where)

    def read(self) -> NDArray[Any]:
        return finite(np.asarray(self.values), 0, self.where)


class Chosen(Rows):
    """Some of the rows, in order."""

    def __init__(self, rows: Rows, mask: NDArray[np.bool_]) -> None:
        self._rows, self._mask = rows, mask
        self._places = np.flatnonzero(mask)
        self.shape, self.dtype, self.seekable = (len(self._places), *rows.shape[1:]), rows.dtype, rows.seekable

    def part(self, start: int, stop: int) -> NDArray[Any]:
        places = self._places[start:stop]
        first, last = int(places[0]), int(places[-1])
        return self._rows.part(first, last + 1)[places - first]

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        left: list[NDArray[Any]] = []
        start = 0
        for block in self._rows.blocks(rows):
            left.append(block[self._mask[start : start + len(block)]])
            start += len(block)
            if sum(map(len, left)) >= rows:
                whole = np.concatenate(left)
                yield whole[:rows]
                left = [whole[rows:]]
        whole = np.concatenate(left) if left else np.empty(self.shape, self.dtype)
        yield from (whole[begin : begin + rows] for begin in range(0, len(whole), rows))


class Chained(Rows):
    """Several rows' rows, one after the other; alike in shape and type."""

    def __init__(self, members: Sequence[Rows]) -> None:
        self._members = members
        self._starts = np.cumsum([0, *map(len, members)])
        self.shape, self.dtype = (int(self._starts[-1]), *members[0].shape[1:]), members[0].dtype
        self.seekable = all(member.seekable for member in members)

    def part(self, start: int, stop: int) -> NDArray[Any]:
        parts = [
            member.part(max(start, begin) - begin, min(stop, end) - begin)
            for member, begin, end in zip(self._members, self._starts[:-1], self._starts[1:], strict=True)
            if start < end and stop > begin
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        left = np.empty((0, *self.shape[1:]), self.dtype)
        for member in self._members:
            for block in member.blocks(rows):
                whole = np.concatenate([left, block]) if len(left) else block
                if len(whole) >= rows:
                    yield whole[:rows]
                    whole = whole[rows:]
                left = whole
        if len(left):
            yield left


@dataclass(frozen=True)
class Part:
    """Inputs, and their labels as they were found: one a row, numbers or texts; None where there are none.

    `name` and `labels_name` are what the two are called where they come from.
    """

    inputs: Rows
    labels: NDArray[Any] | None
    name: str = "inputs"
    labels_name: str = "labels"


@dataclass(frozen=True)
class Contents:
    """What a reader found. `test` is None where the data has no test part; `class_names` is empty where it has none.

    With `categories`, labels are any values, of which each is a class; otherwise they are class numbers from 0.
    """

    train: Part
    test: Part | None = None
    class_names: Sequence[str] = ()
    categories: bool = False


@dataclass(frozen=True)
class Options:
    """How data is to be read, where its format leaves a choice; each format takes some of them."""

    inputs: str | None = None
    labels: str | None = None
    test_inputs: str | None = None
    test_labels: str | None = None
    image_size: str | None = None
    test_fraction: str | None = None

    def given(self) -> dict[str, str]:
        """Those that are set, by the name of their option."""
        pairs = ((one.name.replace("_", "-"), getattr(self, one.name)) for one in fields(self))
        return {name: value for name, value in pairs if value is not None}

    def allow(self, what: str, *names: str) -> None:
        """Refuse options that mean nothing to a format.

        Raises:
            UsageError: naming the first of them.
        """
        for name in self.given():
            if name not in names:
                raise UsageError(
                    f"--{name} means nothing for {what}" + (f", which takes --{', --'.join(names)}" * bool(names))
                )


AS_IT_IS = Options()


class Reader(Protocol):
    """One format's reader of one place."""

    def digest(self) -> str:
        """What stands for the data: a SHA-256 that changes when it does; cheap, and without TensorFlow."""

    def contents(self) -> Contents:
        """Open the data: labels are read, inputs when they are asked for.

        Raises:
            KdistillError: if it can't be read as what it should be, in one line.
        """


def finite(block: NDArray[Any], start: int, where: str) -> NDArray[Any]:
    """The block, if its values are finite.

    Raises:
        KdistillError: naming the first row that has another, `start` being the number of the first row here.
    """
    if block.dtype.kind == "f" and not np.isfinite(block).all():
        bad = start + int(np.argmin(np.isfinite(block).reshape(len(block), -1).all(axis=1)))
        raise KdistillError(f"{where} holds NaN or infinity, first in row {bad}")
    return block
