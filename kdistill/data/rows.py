"""Rows of inputs that need not be in memory: reading, selecting, concatenating and standardizing them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError

BLOCK_ROWS = 1000


class Rows:
    """Inputs of shape (rows, ...), which need not be in memory.

    `seekable` rows can be read at any position. Other rows can only be read in order, by `blocks` and `read`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seekable: bool = True

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=object))

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        """Return the rows from `start` up to `stop`. Only for seekable rows."""
        raise NotImplementedError

    def take(self, indices: NDArray[np.intp]) -> NDArray[Any]:
        """Return the rows at some indices, which are ascending and at least one. Only for seekable rows."""
        first, last = int(indices[0]), int(indices[-1])
        return self.read_range(first, last + 1)[indices - first]

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield all rows in order, in blocks of `rows`, with one block in memory at a time."""
        for start in range(0, len(self), rows):
            yield self.read_range(start, min(start + rows, len(self)))

    def read(self) -> NDArray[Any]:
        """Return all rows."""
        result = np.empty(self.shape, self.dtype)
        start = 0
        for block in self.blocks(BLOCK_ROWS):
            result[start : start + len(block)] = block
            start += len(block)
        return result


class StoredArray(Rows, ABC):
    """The rows of one array of a dataset. `where` is what messages call it, `name` the same without the file."""

    where: str
    name: str

    @abstractmethod
    def read_unchecked(self) -> NDArray[Any]:
        """Return all values as they are, for labels and names, which networks do not see; strings as objects."""


class ArrayRows(StoredArray):
    """Rows of an array that is in memory or memory-mapped.

    Values that will be standardized may have any size: `check` is false for them.
    """

    def __init__(self, values: NDArray[Any], where: str, name: str = "inputs", *, check: bool = True) -> None:
        self.values, self.where, self.name, self._check = values, where, name, check
        self.shape, self.dtype = values.shape, native_dtype(values.dtype)

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        block = np.asarray(self.values[start:stop])
        return check_values(block, start, self.where) if self._check else block

    def read(self) -> NDArray[Any]:
        return self.read_range(0, len(self))

    def read_unchecked(self) -> NDArray[Any]:
        return np.array(self.values)


class Subset(Rows):
    """The rows that a mask (rows,) selects, in order."""

    def __init__(self, rows: Rows, mask: NDArray[np.bool_]) -> None:
        self._rows, self._mask, self._indices = rows, mask, np.flatnonzero(mask)
        self.shape, self.dtype, self.seekable = (len(self._indices), *rows.shape[1:]), rows.dtype, rows.seekable

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        return self._rows.take(self._indices[start:stop])

    def take(self, indices: NDArray[np.intp]) -> NDArray[Any]:
        return self._rows.take(self._indices[indices])

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        if self.seekable:
            return super().blocks(rows)
        return _rechunked(self._selected_blocks(rows), rows)

    def _selected_blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        start = 0
        for block in self._rows.blocks(rows):
            yield block[self._mask[start : start + len(block)]]
            start += len(block)


class Concat(Rows):
    """The rows of several members, one member after another. All have one shape and type."""

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
        return _rechunked((block for member in self._members for block in member.blocks(rows)), rows)


class Standardized(Rows):
    """Rows of a table as float32: each column minus its mean, divided by its standard deviation (0 if that is 0).

    `statistics` has the mean and the standard deviation of each column, as `column_statistics` returns them.

    Raises:
        KdistillError: when rows are read, if a value is too far from its column's mean for float32.
    """

    def __init__(self, rows: Rows, statistics: Mapping[str, Sequence[float]], where: str) -> None:
        self._rows, self._columns, self._where = rows, list(statistics), where
        self._means, deviations = np.array(list(statistics.values()), np.float64).T
        self._factors = np.divide(1.0, deviations, out=np.zeros_like(deviations), where=deviations != 0)
        self.shape, self.dtype, self.seekable = rows.shape, np.dtype(np.float32), rows.seekable

    def _standardize(self, block: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            result: NDArray[np.float32] = ((block - self._means) * self._factors).astype(np.float32)
        if not (finite := np.isfinite(result)).all():
            row, column = np.argwhere(~finite)[0]
            raise KdistillError(
                f"{self._where}: column {self._columns[column]} contains {block[row, column]:g}, which is too far from "
                f"the mean of the training rows ({self._means[column]:g}) to standardize in float32: correct the value, "
                "or leave the column out of --inputs"
            )
        return result

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        return self._standardize(self._rows.read_range(start, stop))

    def take(self, indices: NDArray[np.intp]) -> NDArray[Any]:
        return self._standardize(self._rows.take(indices))

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        return map(self._standardize, self._rows.blocks(rows))


def column_statistics(rows: Rows, columns: Sequence[str], where: str) -> dict[str, list[float]]:
    """Return the mean and standard deviation (divisor: number of rows) of each column.

    The standard deviation of a constant column is exactly 0.

    Raises:
        KdistillError: if the values of a column are too large for float64 arithmetic.
    """
    values = rows.read().astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        means, deviations = values.mean(axis=0), values.std(axis=0)
    deviations[values.min(axis=0) == values.max(axis=0)] = 0.0
    statistics = {
        column: [float(mean), float(deviation)]
        for column, mean, deviation in zip(columns, means, deviations, strict=True)
    }
    for column, pair in statistics.items():
        if not np.isfinite(pair).all():
            raise KdistillError(
                f"{where}: the values of column {column} are too large to standardize: rescale them, or leave the "
                "column out of --inputs"
            )
    return statistics


def network_dtype(dtype: np.dtype[Any]) -> str:
    """Return the type as which a network sees values of a type; uint8 stands for values that are scaled to [0, 1]."""
    if dtype == np.uint8:
        return "uint8"
    return "int32" if dtype.kind in "iu" else "float32"


def native_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the same type in the byte order of this machine."""
    return dtype.newbyteorder("=")


def check_values(block: NDArray[Any], start: int, where: str) -> NDArray[Any]:
    """Check that networks can represent the values of a block of rows, and return it in native byte order.

    Networks compute in float32 and take integers as int32. Rounding a float to float32 is fine. A float that would
    become infinity, and an integer outside int32, are errors.

    Args:
        block: (rows, ...) of any type.
        start: the row number of the block's first row.
        where: what messages call the rows.

    Raises:
        KdistillError: naming the first bad value and its position.
    """
    block = block.astype(native_dtype(block.dtype), copy=False)
    kind = block.dtype.kind
    if not block.size or kind not in "iuf" or np.can_cast(block.dtype, np.int32):
        return block
    lowest: float = -(2**31)
    highest: float = 2**31 - 1
    if kind == "f":
        highest = float(np.finfo(np.float32).max)
        lowest = -highest
    if lowest <= block.min().item() and block.max().item() <= highest:  # false for NaN too
        return block
    if kind == "f" and not (finite := np.isfinite(block)).all():
        row = start + int(np.argmin(finite.reshape(len(block), -1).all(axis=1)))
        raise KdistillError(
            f"{where} contains NaN or infinity, first in row {row}: replace these values, or remove their rows"
        )
    first = tuple(np.argwhere((block < lowest) | (block > highest))[0])
    value = f"{where} contains {block[first]} in {_position(first, start)}"
    if kind == "f":
        raise KdistillError(
            f"{value}, beyond the range of float32 that networks compute in (up to {highest:.3g}): rescale the values"
        )
    raise KdistillError(
        f"{value} (rows {start} to {start + len(block) - 1} range from {block.min()} to {block.max()}), beyond the range "
        f"of int32, {lowest} to {highest}: subtract an offset, or convert to floats, e.g. with .astype('float32')"
    )


def _position(index: tuple[np.intp, ...], start: int) -> str:
    """Describe the position of a value by its index in a block that starts at row `start`."""
    row, *inside = map(int, index)
    if not inside:
        return f"row {start + row}"
    return f"row {start + row}, " + (f"column {inside[0]}" if len(inside) == 1 else f"position {tuple(inside)}")


def _rechunked(blocks: Iterable[NDArray[Any]], rows: int) -> Iterator[NDArray[Any]]:
    """Yield the rows of blocks of any size in blocks of `rows`; the last one may be smaller."""
    rest: NDArray[Any] | None = None
    for block in blocks:
        merged = block if rest is None or not len(rest) else np.concatenate([rest, block])
        full = len(merged) // rows * rows
        yield from (merged[start : start + rows] for start in range(0, full, rows))
        rest = merged[full:]
    if rest is not None and len(rest):
        yield rest
