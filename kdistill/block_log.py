"""An append-only file of checked records, which a killed run leaves behind and the next goes on from."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.workspace import Manifest

Columns = Mapping[str, tuple[tuple[int, ...], str]]
Block = dict[str, NDArray[Any]]

_RECORD = struct.Struct("<QQI")  # first row, rows, CRC-32 of the columns


class BlockLog:
    """Blocks of rows, each row with a value in every column.

    The first line is the identity of what is being made; each record holds one block. A record that was cut short is
    dropped on opening, so that work goes on after the last whole one. A log of another identity is begun anew, which
    `restarted` tells.

    Args:
        path: the file.
        identity: of what is being made.
        columns: shape and type of each column's values in one row.
    """

    def __init__(self, path: Path, identity: Manifest, columns: Columns) -> None:
        self.path = path
        self._columns = columns
        self._row_bytes = sum(np.dtype(dtype).itemsize * math.prod(shape) for shape, dtype in columns.values())
        head = identity.to_json().replace("\n", " ").encode() + b"\n"
        self._start = len(head)
        self.rows = 0
        self.restarted = False
        self._file = path.open("a+b", buffering=0)  # what could not be written must not be tried again on closing
        self._file.seek(0)
        if self._file.read(len(head)) != head:
            self.restarted = self._file.tell() > 0
            self._file.truncate(0)
            self._write(head)
        else:
            end = self._start
            for rows, _ in self._records():
                self.rows += rows
                end = self._file.tell()
            self._file.truncate(end)

    def _records(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(self._start)
        following = 0
        while len(head := self._file.read(_RECORD.size)) == _RECORD.size:
            first, rows, checksum = _RECORD.unpack(head)
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
        self._write(_RECORD.pack(self.rows, len(parts[0]), zlib.crc32(body)) + body)
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
