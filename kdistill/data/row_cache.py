"""Decoded rows kept on disk, so that data that is slow to decode is decoded once.

An entry is a file `KEY.rows`: an `.npy` of rows, and the SHA-256 of the key and of that `.npy`. The checksum is verified
each time an entry is opened, and a damaged entry is removed. Entries are written to a temporary file and renamed, so
any number of processes can read, write and remove them at once, and be killed at any instant. Whoever makes a key makes
sure that it says all that the rows depend on. The directory can be deleted at any time.
"""

from __future__ import annotations

import contextlib
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

MOST_BYTES = 10 << 30  # of all entries in a directory; the ones that were not used for longest are removed first
ENTRY, UNFINISHED = ".rows", ".partial"
BLOCK_BYTES = 1 << 20


class _NotKeptError(Exception):
    """There is no room for an entry, or it can't be written."""


def read(directory: Path, key: str) -> NDArray[np.uint8] | None:
    """Open an entry.

    Args:
        directory: where entries are.
        key: letters and digits that say what the rows are.

    Returns:
        Rows (rows, ...), mapped into memory and read-only, or None if there is no entry or it is damaged.
    """
    path = directory / f"{key}{ENTRY}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb", buffering=0) as stream:
        try:
            rows = _mapped(stream, key)
        except (OSError, ValueError):
            rows = None
        with contextlib.suppress(OSError):
            if rows is None:
                path.unlink()
            else:
                os.utime(descriptor)
    return rows


def _mapped(stream: IO[bytes], key: str) -> NDArray[np.uint8]:
    """The rows of an entry, once its checksum is verified.

    Raises:
        ValueError: if it is damaged.
    """
    whole = hashlib.sha256(key.encode())
    status = os.fstat(stream.fileno())
    left = status.st_size - whole.digest_size
    if not stat.S_ISREG(status.st_mode) or left < 0:
        raise ValueError("not an entry")
    while left and (block := stream.read(min(left, BLOCK_BYTES))):
        whole.update(block)
        left -= len(block)
    if left or stream.read() != whole.digest():
        raise ValueError("the checksum differs")
    stream.seek(0)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return np.asarray(np.memmap(stream, dtype, "r", stream.tell(), shape))


def write(
    directory: Path, key: str, shape: tuple[int, ...], blocks: Iterable[NDArray[np.uint8]]
) -> NDArray[np.uint8] | None:
    """Make an entry.

    Args:
        directory: where entries are; it is made if it is missing.
        key: letters and digits that say what the rows are.
        shape: (rows, ...).
        blocks: the rows in order. If it raises an error, that is raised, and nothing is kept.

    Returns:
        As `read`; None if there is no room for the entry, or it can't be written.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    whole = hashlib.sha256(key.encode())
    size = len(header.getvalue()) + math.prod(shape) + whole.digest_size
    unfinished = directory / f".{key}.{secrets.token_hex(8)}{UNFINISHED}"
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        with _started(unfinished, size) as stream:
            _append(stream, header.getvalue(), whole)
            for block in blocks:
                _append(stream, block.data.cast("B"), whole)
            _append(stream, whole.digest())
            with _disk():
                os.replace(unfinished, directory / f"{key}{ENTRY}")
    except _NotKeptError:
        return None
    finally:
        for remove in (unfinished.unlink, *(path.rmdir for path in made)):  # directories go only if they are empty
            with contextlib.suppress(OSError):
                remove()
    return read(directory, key)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """What the disk refuses means that nothing is kept."""
    try:
        yield
    except OSError as error:
        raise _NotKeptError from error


@contextlib.contextmanager
def _started(unfinished: Path, size: int) -> Iterator[IO[bytes]]:
    """A new file for an entry of `size` bytes, locked while its process lives."""
    with _disk():
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        _make_room(unfinished.parent, size)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(unfinished, flags, 0o666)
    with open(descriptor, "wb", buffering=0) as stream:
        with _disk():
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield stream


def _append(stream: IO[bytes], content: bytes | memoryview, whole: hashlib._Hash | None = None) -> None:
    if whole:
        whole.update(content)
    left = memoryview(content)
    with _disk():
        while left:
            left = left[stream.write(left) :]


def _make_room(directory: Path, size: int) -> None:
    """Remove what killed processes left, and the oldest entries until one of `size` bytes fits.

    Raises:
        _NotKeptError: if it doesn't fit, or would take more than half of what is free on the disk.
    """
    if size > min(MOST_BYTES, shutil.disk_usage(directory).free // 2):
        raise _NotKeptError
    entries = []
    used = size
    for path in directory.iterdir():
        if path.suffix == UNFINISHED and _is_abandoned(path):
            path.unlink(missing_ok=True)
        elif path.suffix in (ENTRY, UNFINISHED):
            with contextlib.suppress(FileNotFoundError):  # another process removed or renamed it just now
                found = path.lstat()
                used += found.st_size
                if path.suffix == ENTRY:
                    entries.append((found.st_mtime_ns, found.st_size, path))
    for _, freed, path in sorted(entries):
        if used <= MOST_BYTES:
            break
        path.unlink(missing_ok=True)
        used -= freed
    if used > MOST_BYTES:
        raise _NotKeptError


def _is_abandoned(unfinished: Path) -> bool:
    """Whether no process holds the lock of an unfinished entry."""
    try:
        descriptor = os.open(unfinished, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
