"""A cache of decoded rows on disk, so that data that is slow to decode is decoded once.

An entry is a file `KEY.rows`: an `.npy` of the rows, and the SHA-256 of the key and the `.npy`. Entries are verified
when they are opened; damaged ones are removed. They are written to a temporary file that is then renamed, so processes
can read, write and remove entries at the same time, and can be killed at any time. A key must depend on everything that
the rows depend on. The directory can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 10 << 30  # of all entries in a directory; the least recently used ones are removed first
ENTRY, UNFINISHED = ".rows", ".partial"
BLOCK_BYTES = 1 << 20


def read(directory: Path, key: str) -> NDArray[np.uint8] | None:
    """Open an entry.

    Args:
        directory: where the entries are.
        key: letters and digits that identify the rows.

    Returns:
        The rows (rows, ...), memory-mapped and read-only; None if there is no entry, or it is damaged.
    """
    path = directory / f"{key}{ENTRY}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb", buffering=0) as stream:
        try:
            rows = _map_rows(stream, key)
        except (OSError, ValueError):
            rows = None
        with contextlib.suppress(OSError):
            if rows is None:
                path.unlink()
            else:
                os.utime(descriptor)
    return rows


def _map_rows(stream: IO[bytes], key: str) -> NDArray[np.uint8]:
    """Verify the checksum of an entry, and map its rows into memory.

    Raises:
        ValueError: if the entry is damaged.
    """
    checksum = hashlib.sha256(key.encode())
    status = os.fstat(stream.fileno())
    remaining = status.st_size - checksum.digest_size
    if not stat.S_ISREG(status.st_mode) or remaining < 0:
        raise ValueError("not an entry")
    while remaining and (block := stream.read(min(remaining, BLOCK_BYTES))):
        checksum.update(block)
        remaining -= len(block)
    if remaining or stream.read() != checksum.digest():
        raise ValueError("the checksum differs")
    stream.seek(0)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return np.asarray(np.memmap(stream, dtype, "r", stream.tell(), shape))


def write(
    directory: Path, key: str, shape: tuple[int, ...], blocks: Iterable[NDArray[np.uint8]]
) -> NDArray[np.uint8] | None:
    """Write an entry and open it.

    Args:
        directory: where the entries are; created if missing.
        key: letters and digits that identify the rows.
        shape: (rows, ...).
        blocks: the rows in order. Errors that it raises are passed on, and nothing is kept.

    Returns:
        The rows, as from `read`; None if there is no room for the entry, or the disk fails.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    checksum = hashlib.sha256(key.encode())
    size = len(header.getvalue()) + math.prod(shape) + checksum.digest_size
    unfinished = directory / f".{key}.{secrets.token_hex(8)}{UNFINISHED}"
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    errors_of_blocks: list[OSError] = []

    def chunks() -> Iterator[bytes | memoryview]:
        yield header.getvalue()
        try:
            for block in blocks:
                yield block.data.cast("B")
        except OSError as error:
            errors_of_blocks.append(error)
            raise

    try:
        directory.mkdir(parents=True, exist_ok=True)
        _make_room(directory, size)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with open(descriptor, "wb", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # other processes do not remove a locked file
            for chunk in chunks():
                checksum.update(chunk)
                _write_all(stream, chunk)
            _write_all(stream, checksum.digest())
            os.replace(unfinished, directory / f"{key}{ENTRY}")
    except OSError as error:
        if error in errors_of_blocks:
            raise
        return None
    finally:
        for remove in (unfinished.unlink, *(path.rmdir for path in created)):  # only empty directories are removed
            with contextlib.suppress(OSError):
                remove()
    return read(directory, key)


def _write_all(stream: IO[bytes], content: bytes | memoryview) -> None:
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[stream.write(remaining) :]


def _make_room(directory: Path, size: int) -> None:
    """Remove files of killed processes, and old entries until one of `size` bytes fits.

    Raises:
        OSError: if it does not fit, or would take more than half of the free disk space.
    """
    if size > min(MAX_BYTES, shutil.disk_usage(directory).free // 2):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    entries = []
    used = size
    for path in directory.iterdir():
        if path.suffix == UNFINISHED and _is_abandoned(path):
            path.unlink(missing_ok=True)
        elif path.suffix in (ENTRY, UNFINISHED):
            with contextlib.suppress(FileNotFoundError):  # another process just removed or renamed it
                status = path.lstat()
                used += status.st_size
                if path.suffix == ENTRY:
                    entries.append((status.st_mtime_ns, status.st_size, path))
    for _, entry_size, path in sorted(entries):
        if used > MAX_BYTES:
            path.unlink(missing_ok=True)
            used -= entry_size
    if used > MAX_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_abandoned(unfinished: Path) -> bool:
    """Return whether no process holds the lock of an unfinished entry."""
    try:
        descriptor = os.open(unfinished, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with open(descriptor, "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
