"""An append-only file of checked records, which a killed run leaves behind and the next one resumes."""

from __future__ import annotations

import json
import math
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError
from kdistill.workspace import Manifest

Columns = Mapping[str, tuple[tuple[int, ...], str]]
Block = dict[str, NDArray[Any]]

_RECORD = struct.Struct("<QQdI")  # first row, rows, seconds of work on them, CRC-32 of the columns


@dataclass(frozen=True)
class LogProgress:
    """What a log says of itself, and how far it came: `total` rows are wanted, None where nobody said."""

    identity: Manifest
    row_bytes: int
    total: int | None
    rows: int = 0
    seconds: float = 0.0


def read_progress(path: Path) -> LogProgress:
    """How far a log came, without reading its rows.

    Raises:
        ValueError, KeyError, TypeError, KdistillError: if it is not a log.
    """
    with path.open("rb") as file:
        told = _head(file.readline(), path)
        rows, seconds = 0, 0.0
        while len(head := file.read(_RECORD.size)) == _RECORD.size:
            first, count, took, _ = _RECORD.unpack(head)
            if first != rows or file.seek(count * told.row_bytes, os.SEEK_CUR) > os.fstat(file.fileno()).st_size:
                break
            rows, seconds = rows + count, seconds + took
    return replace(told, rows=rows, seconds=seconds)


def _head(line: bytes, path: Path) -> LogProgress:
    fields = json.loads(line)
    identity = Manifest.from_json(fields["identity"], str(path), "", finished=False)
    return LogProgress(identity, int(fields["row_bytes"]), fields["total"])


class BlockLog:
    """Blocks of rows, each row with a value in every column.

    The first line says what is being made, and how large a row is; each record holds one block. A record that was cut
    short is dropped on opening, so that work goes on after the last whole one. A log of another identity is begun anew,
    which `restarted` tells.

    Args:
        path: the file.
        identity: of what is being made.
        columns: shape and type of each column's values in one row.
        total: how many rows there will be, for whoever looks at a log that was left behind.
    """

    def __init__(self, path: Path, identity: Manifest, columns: Columns, total: int | None = None) -> None:
        self.path = path
        self._columns = columns
        self._row_bytes = sum(np.dtype(dtype).itemsize * math.prod(shape) for shape, dtype in columns.values())
        fields = {"identity": identity.to_json(), "row_bytes": self._row_bytes, "total": total}
        head = json.dumps(fields).encode() + b"\n"
        self._last_append = time.perf_counter()
        self.rows = 0
        self.restarted = False
        self._file = path.open("a+b", buffering=0)  # what could not be written must not be tried again on closing
        self._file.seek(0)
        line = self._file.readline()
        if not self._continues(line, identity):
            self.restarted = bool(line)
            self._file.truncate(0)
            self._write(head)
            self._start = len(head)
        else:
            end = self._start = len(line)
            for rows, _ in self._records():
                self.rows += rows
                end = self._file.tell()
            self._file.truncate(end)

    def _continues(self, line: bytes, identity: Manifest) -> bool:
        """Whether the first line of a log is of the same thing, with rows of the same size."""
        try:
            told = _head(line, self.path)
        except (ValueError, KeyError, TypeError, KdistillError):
            return False
        return not told.identity.differences(identity) and told.row_bytes == self._row_bytes

    def _records(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(self._start)
        following = 0
        while len(head := self._file.read(_RECORD.size)) == _RECORD.size:
            first, rows, _, checksum = _RECORD.unpack(head)
            left = os.fstat(self._file.fileno()).st_size - self._file.tell()
            if first != following or rows * self._row_bytes > left:
                return
            body = self._file.read(rows * self._row_bytes)
            if zlib.crc32(body) != checksum:
                return
            following += rows
            yield rows, body

    def append(self, block: Block) -> None:
        """Add one block: every column, (rows, ...)."""
        parts = [np.ascontiguousarray(block[name], dtype) for name, (_, dtype) in self._columns.items()]
        body = b"".join(part.tobytes() for part in parts)
        seconds, self._last_append = time.perf_counter() - self._last_append, time.perf_counter()
        self._write(_RECORD.pack(self.rows, len(parts[0]), seconds, zlib.crc32(body)) + body)
        self.rows += len(parts[0])

    def _write(self, contents: bytes) -> None:
        left = memoryview(contents)
        while left:
            left = left[self._file.write(left) :]

    def blocks(self) -> Iterator[Block]:
        """The blocks as they were appended, one in memory at a time."""
        for rows, body in self._records():
            block, offset = {}, 0
            for name, (shape, dtype) in self._columns.items():
                count = rows * math.prod(shape)
                block[name] = np.frombuffer(body, dtype, count, offset).reshape(rows, *shape)
                offset += count * np.dtype(dtype).itemsize
            yield block

    def close(self) -> None:
        self._file.close()
