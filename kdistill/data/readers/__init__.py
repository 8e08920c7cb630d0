"""Readers: data of some format to rows of inputs, labels and class names; one module a format.

A reader is made from a place and how it is to be read, says what it would read (`digest`, without reading more than it must)
and reads it (`contents`). What it hands over is checked, cut and standardised in one place, `kdistill.data`.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError
from kdistill.settings import ReadOptions

BLOCK_ROWS = 1000
DEFAULT_READ_OPTIONS = ReadOptions()
LAYOUT = ("x_train", "y_train", "x_test", "y_test", "class_names")  # what arrays are called, unless options name others
MOST_TEXT = 1000  # characters of a class's name
MOST_READ = 64 << 20  # bytes of class names, and of a matrix of labels, which is read only to say what is wrong with it


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
        self.shape, self.dtype = values.shape, native(values.dtype)

    def part(self, start: int, stop: int) -> NDArray[Any]:
        return checked(np.asarray(self.values[start:stop]), start, self.where)

    def read(self) -> NDArray[Any]:
        return checked(np.asarray(self.values), 0, self.where)


class TableRows(Array):
    """Rows of a table, finite float64 numbers, which may be of any size: networks see them standardized."""

    def part(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self.values[start:stop])

    def read(self) -> NDArray[Any]:
        return np.asarray(self.values)


class Subset(Rows):
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


class Concat(Rows):
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


class Standardized(Rows):
    """A table's rows with each column less its mean and divided by its standard deviation, as float32; 0 where it is 0.

    Raises:
        KdistillError: when rows are read, if a value is too far from its column's mean for float32.
    """

    def __init__(self, rows: Rows, standards: Mapping[str, Sequence[float]], where: str) -> None:
        self._rows, self._columns, self._where = rows, list(standards), where
        self._means, deviations = np.array(list(standards.values()), np.float64).T
        self._factors = np.divide(1.0, deviations, out=np.zeros_like(deviations), where=deviations != 0)
        self.shape, self.dtype, self.seekable = rows.shape, np.dtype(np.float32), rows.seekable

    def _scaled(self, block: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            scaled: NDArray[np.float32] = ((block - self._means) * self._factors).astype(np.float32)
        if not (finite := np.isfinite(scaled)).all():
            row, column = np.argwhere(~finite)[0]
            raise KdistillError(
                f"{self._where}: column {self._columns[column]} holds {block[row, column]:g}, too far from the training "
                f"rows' mean of {self._means[column]:g} to be standardized in float32: correct the value, or leave the "
                "column out with --inputs"
            )
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

    Texts are arrays of fixed width or, from `texts`, of objects.

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
        return self.categories or (self.train.labels is not None and self.train.labels.dtype.kind in "USO")


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
    options: ReadOptions = DEFAULT_READ_OPTIONS
    cache: Path | None = None
    format: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.options.allow(self.format, *self.takes)
        for name, file in self.options.given().items():
            if name in self.files:
                check_file(name, file)

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


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The same type in this machine's byte order."""
    return dtype.newbyteorder("=")


def checked(block: NDArray[Any], start: int, where: str) -> NDArray[Any]:
    """Return a block of rows in native byte order, if networks see its values as they are.

    Networks compute in float32 and take whole numbers as int32. Floats are rounded to float32 without a word, but a
    value that would become infinity there, and a whole number that would become another one, is refused.

    Args:
        block: (rows, ...) of any type.
        start: the number of its first row.
        where: what the rows are called, for messages.

    Raises:
        KdistillError: naming the first such row, and its column if rows have one dimension.
    """
    block = block.astype(native(block.dtype), copy=False)
    kind = block.dtype.kind
    if not block.size or kind not in "iuf" or np.can_cast(block.dtype, np.int32):
        return block
    low, high = block.min(), block.max()
    if kind == "f":
        limit = float(np.finfo(np.float32).max)
        if -limit <= float(low) and float(high) <= limit:  # false for NaN too
            return block
        if not np.isfinite(block).all():
            bad = start + int(np.argmin(np.isfinite(block).reshape(len(block), -1).all(axis=1)))
            raise KdistillError(f"{where} holds NaN or infinity, first in row {bad}")
        first = np.argwhere(np.abs(block) > limit)[0]
        raise KdistillError(
            f"{where} holds {block[tuple(first)]:g} in {_place(first, start)}, which is infinity in the float32 that "
            f"networks compute in (up to {limit:.3g}): rescale the values"
        )
    limits = np.iinfo(np.int32)
    if int(low) < limits.min or int(high) > limits.max:
        first = np.argwhere((block < limits.min) | (block > limits.max))[0]
        raise KdistillError(
            f"{where} holds {block[tuple(first)]} in {_place(first, start)}, and {low} to {high} in rows {start} to "
            f"{start + len(block) - 1}: networks take whole numbers from {limits.min} to {limits.max} (int32); subtract "
            "an offset, or convert to floating point with .astype('float32')"
        )
    return block


def _place(index: NDArray[np.intp], start: int) -> str:
    """Where a value lies, in words, from its index in a block whose first row has the number `start`."""
    row, *within = map(int, index)
    inside = f", column {within[0]}" if len(within) == 1 else f", position {tuple(within)}" if within else ""
    return f"row {start + row}{inside}"


def check_labels(shape: tuple[int, ...], dtype: np.dtype[Any], rows: int, where: str) -> None:
    """Refuse labels by their header alone, before any of them is read: a small file may claim many.

    Raises:
        KdistillError: if there is not one label a row, or labels are longer than `MOST_TEXT` or a huge matrix.
    """
    if shape[:1] != (rows,):
        what = f"{shape[0]} labels" if shape else "one value"
        raise KdistillError(f"{where} has {what} for {rows} rows of inputs")
    _check_text(dtype, where)
    if math.prod(shape) > rows and (dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize > MOST_READ):
        raise KdistillError(f"{where} has shape {shape}: labels are one class per row, ({rows},)")


def check_names(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Refuse class names by their header alone, as `check_labels` does labels.

    Raises:
        KdistillError: if they are longer than `MOST_TEXT`, or too many.
    """
    _check_text(dtype, where)
    if math.prod(shape) * dtype.itemsize > MOST_READ:
        raise KdistillError(f"{where} claims {shape} of {dtype}: it needs one name per class")


def _check_text(dtype: np.dtype[Any], where: str) -> None:
    length = dtype.itemsize // (4 if dtype.kind == "U" else 1)
    if dtype.kind in "US" and length > MOST_TEXT:
        raise KdistillError(
            f"{where} holds texts of up to {length:,} characters: a class's name has {MOST_TEXT:,} at most"
        )


def texts(values: Iterable[Any], where: str) -> NDArray[np.object_]:
    """Texts, which may be bytes, as objects (rows,): in an array of fixed width a single long one would widen all.

    Raises:
        KdistillError: if one is longer than `MOST_TEXT`.
    """
    found = [text(value) for value in values]
    if long := [row for row, value in enumerate(found) if len(value) > MOST_TEXT]:
        row = long[0]
        raise KdistillError(
            f"{where} holds a text of {len(found[row]):,} characters in row {row}: a class's name has {MOST_TEXT:,} at "
            "most"
        )
    return np.array(found, object)


def matrix_fault(labels: NDArray[Any], fix: str) -> str:
    """What is wrong with labels (rows, ...) of several numbers each, in words.

    Args:
        labels: of some rows.
        fix: what makes class numbers of one-hot labels.
    """
    flat = labels.reshape(len(labels), math.prod(labels.shape[1:]))
    if not flat.size or flat.dtype.kind not in "biuf" or not np.isin(flat, (0, 1)).all():
        return "labels are one class per row, of shape (rows,)"
    ones = flat.astype(bool).sum(axis=1)
    if (ones == 1).all():
        return f"one-hot labels become class numbers by {fix}"
    row = int(np.argmax(ones != 1))
    return f"multi-label data is not supported: row {row} has {ones[row]} ones, and each row needs exactly one class"


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the name that may have been meant, to be put after a message; empty where none is near."""
    by_lower = {other.lower(): other for other in names if name not in LAYOUT or other not in LAYOUT}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def check_file(option: str, place: str) -> None:
    """Refuse what isn't a regular file, or a link to one: a pipe or a device may never end, and is read only once.

    Raises:
        KdistillError: naming the option.
    """
    path = Path(place)
    if not path.exists():
        raise KdistillError(f"--{option} {place}: there is no such file")
    if path.is_dir():
        raise KdistillError(f"--{option} {place}: it is a directory, and a file is needed")
    if not path.is_file():
        raise KdistillError(f"--{option} {place}: it is not a regular file (a pipe or a device): copy it into a file")


def text(value: Any) -> str:
    """A label or a name, which may be bytes, as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
