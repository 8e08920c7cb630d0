"""Rows of inputs that need not be in memory: how they are read, selected, concatenated and standardized."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError

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
    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`, both within; not for rows that are not seekable."""

    def take(self, places: NDArray[np.intp]) -> NDArray[Any]:
        """The rows at some places, which ascend and are not none; not for rows that are not seekable."""
        first, last = int(places[0]), int(places[-1])
        return self.read_range(first, last + 1)[places - first]

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """All rows in order, `rows` at a time, one block in memory."""
        for start in range(0, len(self), rows):
            yield self.read_range(start, min(start + rows, len(self)))

    def read(self) -> NDArray[Any]:
        """All rows."""
        whole = np.empty(self.shape, self.dtype)
        start = 0
        for block in self.blocks(BLOCK_ROWS):
            whole[start : start + len(block)] = block
            start += len(block)
        return whole


class ArrayRows(Rows):
    """Rows that are in memory already, or mapped there."""

    def __init__(self, values: NDArray[Any], where: str) -> None:
        self.values, self.where = values, where
        self.shape, self.dtype = values.shape, native(values.dtype)

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        return check_values(np.asarray(self.values[start:stop]), start, self.where)

    def read(self) -> NDArray[Any]:
        return check_values(np.asarray(self.values), 0, self.where)


class TableRows(ArrayRows):
    """Rows of a table, finite float64 numbers, which may be of any size: networks see them standardized."""

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self.values[start:stop])

    def read(self) -> NDArray[Any]:
        return np.asarray(self.values)


class Subset(Rows):
    """Some of the rows, in order."""

    def __init__(self, rows: Rows, mask: NDArray[np.bool_]) -> None:
        self._rows, self._mask = rows, mask
        self._places = np.flatnonzero(mask)
        self.shape, self.dtype, self.seekable = (len(self._places), *rows.shape[1:]), rows.dtype, rows.seekable

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
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

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        parts = [
            member.read_range(max(start, begin) - begin, min(stop, end) - begin)
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

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        return self._scaled(self._rows.read_range(start, stop))

    def take(self, places: NDArray[np.intp]) -> NDArray[Any]:
        return self._scaled(self._rows.take(places))

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        yield from map(self._scaled, self._rows.blocks(rows))


def column_statistics(rows: Rows, columns: Sequence[str], where: str) -> dict[str, list[float]]:
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


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The same type in this machine's byte order."""
    return dtype.newbyteorder("=")


def check_values(block: NDArray[Any], start: int, where: str) -> NDArray[Any]:
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
