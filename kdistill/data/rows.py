"""Rows of inputs that need not be in memory: reading, selecting and concatenating them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
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
    def row_bytes(self) -> int:
        """The bytes of a row in memory; a mean for texts."""
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=object))

    @property
    def nbytes(self) -> int:
        return len(self) * self.row_bytes

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


class NumberedBlocks:
    """The blocks of some rows by number, each of `size` rows; the last one may be smaller.

    Rows that are not seekable are read in order up to a block, so ascending numbers are the cheapest.
    """

    def __init__(self, rows: Rows, size: int) -> None:
        self._rows, self._size = rows, size
        self._stream, self._next = rows.blocks(size), 0

    def __getitem__(self, number: int) -> NDArray[Any]:
        if self._rows.seekable:
            return self._rows.read_range(number * self._size, min((number + 1) * self._size, len(self._rows)))
        if number < self._next:
            self._stream, self._next = self._rows.blocks(self._size), 0
        block = next(islice(self._stream, number - self._next, None))
        self._next = number + 1
        if self._next * self._size >= len(self._rows):
            next(self._stream, None)  # some readers check at the end that nothing follows
        return block


class StoredArray(Rows, ABC):
    """The rows of one array of a dataset. `where` is what messages call it, `name` the same without the file."""

    where: str
    name: str

    @abstractmethod
    def read_unchecked(self) -> NDArray[Any]:
        """Return all values as they are, for labels and names, which networks do not see; strings as objects."""


class ArrayRows(StoredArray):
    """Rows of an array that is in memory or memory-mapped."""

    def __init__(self, values: NDArray[Any], where: str, name: str = "inputs") -> None:
        self.values, self.where, self.name = values, where, name
        self.shape, self.dtype = values.shape, native_dtype(values.dtype)

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        return check_values(np.asarray(self.values[start:stop]), start, self.where)

    def read(self) -> NDArray[Any]:
        return self.read_range(0, len(self))

    def read_unchecked(self) -> NDArray[Any]:
        return np.array(self.values)


class Subset(Rows):
    """The rows that a mask (rows,) selects, in order."""

    def __init__(self, rows: Rows, mask: NDArray[np.bool_]) -> None:
        self._rows, self._mask, self._indices = rows, mask, np.flatnonzero(mask)
        self.shape, self.dtype, self.seekable = (len(self._indices), *rows.shape[1:]), rows.dtype, rows.seekable

    @property
    def row_bytes(self) -> int:
        return self._rows.row_bytes

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

    @property
    def row_bytes(self) -> int:
        return max(member.row_bytes for member in self._members)

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        parts = [
            member.read_range(max(start, begin) - begin, min(stop, end) - begin)
            for member, begin, end in zip(self._members, self._starts[:-1], self._starts[1:], strict=True)
            if start < end and stop > begin
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        return _rechunked((block for member in self._members for block in member.blocks(rows)), rows)


def held_out(rows: int, fraction: float) -> NDArray[np.bool_]:
    """Return which rows `--test-fraction` sets aside, (rows,). The choice depends only on the number of rows."""
    mask = np.zeros(rows, bool)
    mask[np.random.default_rng(rows).permutation(rows)[: round(rows * fraction)]] = True
    return mask


def network_dtype(name: str) -> str:
    """Return the type that a network receives for rows of a type, by its `type_name`; uint8 is scaled to [0, 1]."""
    if name in ("uint8", "string"):
        return name
    return "int32" if np.dtype(name).kind in "iu" else "float32"


def type_name(dtype: np.dtype[Any]) -> str:
    """Return what manifests and messages call the type of a dataset's rows: `string` for texts."""
    return "string" if dtype.hasobject else str(dtype)


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
