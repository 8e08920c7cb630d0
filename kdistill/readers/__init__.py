"""Readers: data of some format to rows of inputs, labels and class names; one module a format.

A reader is made from a place and how it is to be read, says what it would read (`digest`, without reading more than it must)
and reads it (`contents`). What it hands over is checked, cut and standardised in one place, `kdistill.data`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError
from kdistill.settings import Reading

BLOCK_ROWS = 1000
AS_IT_IS = Reading()


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

    def take(self, places: NDArray[np.intp]) -> NDArray[Any]:
        """The rows at some places, which ascend and are not none; not for rows that are not seekable."""
        first, last = int(places[0]), int(places[-1])
        return self.part(first, last + 1)[places - first]

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
        return self._rows.take(self._places[start:stop])

    def take(self, places: NDArray[np.intp]) -> NDArray[Any]:
        return self._rows.take(self._places[places])

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        if self.seekable:
            yield from super().blocks(rows)
            return
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


class Standardised(Rows):
    """A table's rows with each column less its mean and divided by its standard deviation, as float32; 0 where it is 0."""

    def __init__(self, rows: Rows, standards: Mapping[str, Sequence[float]]) -> None:
        self._rows = rows
        self._means, deviations = np.array(list(standards.values()), np.float64).T
        self._factors = np.divide(1.0, deviations, out=np.zeros_like(deviations), where=deviations != 0)
        self.shape, self.dtype, self.seekable = rows.shape, np.dtype(np.float32), rows.seekable

    def _scaled(self, block: NDArray[Any]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = ((block - self._means) * self._factors).astype(np.float32)
        return scaled

    def part(self, start: int, stop: int) -> NDArray[Any]:
        return self._scaled(self._rows.part(start, stop))

    def take(self, places: NDArray[np.intp]) -> NDArray[Any]:
        return self._scaled(self._rows.take(places))

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        yield from map(self._scaled, self._rows.blocks(rows))


def standards_of(rows: Rows, columns: Sequence[str], where: str) -> dict[str, list[float]]:
    """Mean and standard deviation (of all the rows, not of a sample) of each column; exactly 0 where it is constant.

    Raises:
        KdistillError: if a column's values are too large for that.
    """
    values = rows.read().astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        means, deviations = values.mean(axis=0), values.std(axis=0)
    for column, mean, deviation in zip(columns, means, deviations, strict=True):
        if not np.isfinite([mean, deviation]).all():
            raise KdistillError(f"{where}: column {column} holds values too large to be standardised")
    deviations[values.min(axis=0) == values.max(axis=0)] = 0.0
    return {
        column: [float(mean), float(deviation)]
        for column, mean, deviation in zip(columns, means, deviations, strict=True)
    }


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

    With `categories`, as where they are texts, labels are any values, of which each is a class; otherwise they are
    class numbers from 0. `columns` names the values in a row, where these are a table's: each column has a scale of
    its own, and is to be standardised. `preprocessing` is what else has to be done to an input before the network
    sees it, as JSON can say it. `warnings` are lines for the user about data that is read all the same.
    """

    train: Part
    test: Part | None = None
    class_names: Sequence[str] = ()
    categories: bool = False
    columns: Sequence[str] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def by_name(self) -> bool:
        """Whether labels name their classes, and are no class numbers."""
        return self.categories or (self.train.labels is not None and self.train.labels.dtype.kind in "US")


@dataclass(frozen=True)
class Task:
    """What a dataset's rows are like, where a transfer set must be like them."""

    shape: tuple[int, ...]
    preprocessing: Mapping[str, Any]


@dataclass(frozen=True)
class Reader(ABC):
    """One format's reader of one place.

    `format` is what it is called in messages, `takes` the options that it takes, `files` those that name files, and
    `limits` those that bound what reading may cost and change nothing that is read. `cache` is a directory for rows that
    are slow to decode; without one they are decoded each time they are read.

    Raises:
        UsageError: if it is given an option that it does not take.
        KdistillError: if a file that an option names is not there.
    """

    place: str
    options: Reading = AS_IT_IS
    cache: Path | None = None
    format: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.options.allow(self.format, *self.takes)
        given = self.options.given()
        if gone := [name for name in self.files if name in given and not Path(given[name]).is_file()]:
            raise KdistillError(f"--{gone[0]} {given[gone[0]]}: there is no such file")

    @property
    def path(self) -> Path:
        return Path(self.place)

    @abstractmethod
    def digest(self) -> str:
        """What stands for the data: a SHA-256 that changes when it does; cheap, and without TensorFlow."""

    @abstractmethod
    def contents(self) -> Contents:
        """Open the data: labels are read, inputs when they are asked for.

        Raises:
            KdistillError: if it can't be read as what it should be, in one line.
        """

    def suited(self, task: Task) -> Reader:  # noqa: ARG002 - most formats leave nothing open
        """The same, reading as a task's dataset was read what its own options leave open."""
        return self


def finite(block: NDArray[Any], start: int, where: str) -> NDArray[Any]:
    """The block, if its values are finite.

    Raises:
        KdistillError: naming the first row that has another, `start` being the number of the first row here.
    """
    if block.dtype.kind == "f" and not np.isfinite(block).all():
        bad = start + int(np.argmin(np.isfinite(block).reshape(len(block), -1).all(axis=1)))
        raise KdistillError(f"{where} holds NaN or infinity, first in row {bad}")
    return block


def text(value: Any) -> str:
    """A label or a name, which may be bytes, as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
