"""An append-only log of blocks of rows. A stopped run resumes from it."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError
from kdistill.workspace import Manifest

Columns = Mapping[str, tuple[tuple[int, ...], str]]  # shape and type of one row, by column
Block = dict[str, NDArray[Any]]

_RECORD = struct.Struct("<QQdI")  # first row, rows, seconds of work on them, CRC-32 of the rows


@dataclass(frozen=True)
class LogProgress:
    """What a log is for, and how many rows it has of the `total` (None if that is unknown)."""

    identity: Manifest
    total: int | None
    rows: int
    seconds: float


def read_progress(path: Path) -> LogProgress:
    """Return the progress of a log without reading its rows.

    Raises:
        ValueError, KeyError, TypeError, KdistillError: if the file is not a log.
    """
    rows, seconds = 0, 0.0
    with path.open("rb") as file:
        header, identity = _header(file.readline(), path)
        for count, took, _ in _records(file, int(header["row_size"])):
            rows, seconds = rows + count, seconds + took
    return LogProgress(identity, header["total"], rows, seconds)


def _header(line: bytes, path: Path) -> tuple[dict[str, Any], Manifest]:
    fields = json.loads(line)
    return fields, Manifest.from_json(fields["identity"], str(path), str, finished=False)


def _records(file: BinaryIO, row_bytes: int) -> Iterator[tuple[int, float, int]]:
    """Yield rows, seconds and checksum of each complete record, with the file at the start of its rows."""
    size, first_row = os.fstat(file.fileno()).st_size, 0
    while len(header := file.read(_RECORD.size)) == _RECORD.size:
        first, rows, seconds, checksum = _RECORD.unpack(header)
        end = file.tell() + rows * row_bytes
        if first != first_row or end > size:
            return
        yield rows, seconds, checksum
        first_row += rows
        file.seek(end)


class BlockLog:
    """A log of blocks of rows, each row with a value in every column.

    The first line has the identity of the result and the size of a row. Each record after it has one block; an incomplete
    record at the end is dropped on opening. A log of another identity is discarded, and `restarted` is then true.

    Args:
        path: the file.
        identity: what the result is made from.
        columns: the columns of a block.
        total: number of rows of the complete log, for `read_progress`.
    """

    def __init__(self, path: Path, identity: Manifest, columns: Columns, total: int | None = None) -> None:
        self.path = path
        self._row = np.dtype([(name, dtype, shape) for name, (shape, dtype) in columns.items()])
        self._last_append = time.perf_counter()
        self.rows = 0
        self.restarted = False
        # Without a buffer, closing the file does not try again to write what could not be written.
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        line = self._file.readline()
        if self._continues(line, identity):
            end = self._start = len(line)
            for rows, _ in self._read():
                self.rows += rows
                end = self._file.tell()
            self._file.truncate(end)
        else:
            self.restarted = bool(line)
            self._file.truncate(0)
            header = {"identity": identity.to_json(), "row_size": self._row.itemsize, "total": total}
            line = json.dumps(header).encode() + b"\n"
            self._write(line)
            self._start = len(line)

    def _continues(self, line: bytes, identity: Manifest) -> bool:
        """Return whether a log with this first line has the same identity and size of rows."""
        try:
            header, written = _header(line, self.path)
            return not written.differences(identity) and int(header["row_size"]) == self._row.itemsize
        except (ValueError, KeyError, TypeError, KdistillError):
            return False

    def _read(self) -> Iterator[tuple[int, bytes]]:
        """Yield rows and bytes of each record, up to the first that is incomplete or damaged."""
        self._file.seek(self._start)
        for rows, _, checksum in _records(self._file, self._row.itemsize):
            contents = self._file.read(rows * self._row.itemsize)
            if zlib.crc32(contents) != checksum:
                return
            yield rows, contents

    def append(self, block: Block) -> None:
        """Add a block, (rows, ...) of every column."""
        rows = np.empty(len(next(iter(block.values()))), self._row)
        for name in self._row.names or ():
            rows[name] = block[name]
        seconds, self._last_append = time.perf_counter() - self._last_append, time.perf_counter()
        contents = rows.view(np.uint8)
        self._write(_RECORD.pack(self.rows, len(rows), seconds, zlib.crc32(contents.data)))
        self._write(contents.data)
        self.rows += len(rows)

    def _write(self, contents: bytes | memoryview) -> None:
        remaining = memoryview(contents)
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks in the order of writing, one in memory at a time."""
        for _, contents in self._read():
            rows = np.frombuffer(contents, self._row)
            yield {name: np.ascontiguousarray(rows[name]) for name in self._row.names or ()}

    def close(self) -> None:
        self._file.close()
