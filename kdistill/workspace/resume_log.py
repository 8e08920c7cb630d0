"""An append-only log of blocks of rows, by which a stopped run is resumed."""

from __future__ import annotations

import json
import math
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

Columns = Mapping[str, tuple[tuple[int, ...], str]]
Block = dict[str, NDArray[Any]]

_RECORD = struct.Struct("<QQdI")  # first row, rows, seconds of work on them, CRC-32 of the columns


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
    with path.open("rb") as file:
        fields, identity = _header(file.readline(), path)
        records = list(_records(file, int(fields["row_bytes"])))
    return LogProgress(
        identity, fields["total"], sum(rows for rows, *_ in records), sum(took for _, took, _ in records)
    )


def _header(line: bytes, path: Path) -> tuple[dict[str, Any], Manifest]:
    fields = json.loads(line)
    return fields, Manifest.from_json(fields["identity"], str(path), "", finished=False)


def _records(file: BinaryIO, row_bytes: int) -> Iterator[tuple[int, float, int]]:
    """Yield rows, seconds and checksum of each complete record, with the file at the start of its columns."""
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
    """A log of blocks of rows, in which each row has a value in every column.

    The first line holds the identity of the result and the size of a row; each record after it holds one block. Opening
    drops an incomplete record at the end. A log of another identity is started over, as `restarted` tells.

    Args:
        path: the file.
        identity: what the result is made from.
        columns: shape and type of the value of one row, by column.
        total: number of rows of the complete log, for `read_progress`.

    Attributes:
        rows: number of rows in the log.
        restarted: whether a log of another identity was discarded.
    """

    def __init__(self, path: Path, identity: Manifest, columns: Columns, total: int | None = None) -> None:
        self.path = path
        self._columns = columns
        self._row_bytes = sum(np.dtype(dtype).itemsize * math.prod(shape) for shape, dtype in columns.values())
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
            header = {"identity": identity.to_json(), "row_bytes": self._row_bytes, "total": total}
            line = json.dumps(header).encode() + b"\n"
            self._write(line)
            self._start = len(line)

    def _continues(self, line: bytes, identity: Manifest) -> bool:
        """Return whether a log with this first line has the same identity and size of rows."""
        try:
            fields, written = _header(line, self.path)
            return not written.differences(identity) and int(fields["row_bytes"]) == self._row_bytes
        except (ValueError, KeyError, TypeError, KdistillError):
            return False

    def _read(self) -> Iterator[tuple[int, bytes]]:
        """Yield rows and bytes of each record, up to the first that is incomplete or damaged."""
        self._file.seek(self._start)
        for rows, _, checksum in _records(self._file, self._row_bytes):
            contents = self._file.read(rows * self._row_bytes)
            if zlib.crc32(contents) != checksum:
                return
            yield rows, contents

    def append(self, block: Block) -> None:
        """Add a block, (rows, ...) of every column."""
        parts = [np.ascontiguousarray(block[name], dtype) for name, (_, dtype) in self._columns.items()]
        contents = b"".join(part.tobytes() for part in parts)
        seconds, self._last_append = time.perf_counter() - self._last_append, time.perf_counter()
        self._write(_RECORD.pack(self.rows, len(parts[0]), seconds, zlib.crc32(contents)) + contents)
        self.rows += len(parts[0])

    def _write(self, contents: bytes) -> None:
        remaining = memoryview(contents)
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks in the order of writing, one in memory at a time."""
        for rows, contents in self._read():
            block, offset = {}, 0
            for name, (shape, dtype) in self._columns.items():
                count = rows * math.prod(shape)
                block[name] = np.frombuffer(contents, dtype, count, offset).reshape(rows, *shape)
                offset += count * np.dtype(dtype).itemsize
            yield block

    def close(self) -> None:
        self._file.close()
