"""A lock file that one process holds while it writes an artifact, and that ends with the process.

Own code and not `filelock`, which neither names the holder in its error nor refuses a file that it did not make.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import os
import shlex
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from kdistill.errors import KdistillError

HELD_BY = "process "  # what the content of a lock file starts with


@contextlib.contextmanager
def hold(path: Path, artifact: str) -> Iterator[None]:
    """Hold a lock.

    Args:
        path: the lock file.
        artifact: what it protects, for the message.

    Raises:
        KdistillError: if another process holds it, or if the file is not a lock of kdistill's.
    """
    tries = 3  # `holder` takes the lock for an instant too
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(path, descriptor):
                break
        except BlockingIOError:
            if tries := tries - 1:
                os.close(descriptor)
                time.sleep(0.01)
                continue
            writer = _read(descriptor)
            os.close(descriptor)
            raise KdistillError(f"{artifact} is being written by {writer}: wait for it or stop it") from None
        os.close(descriptor)  # the last holder removed the file between our open and our lock
    try:
        started = dt.datetime.now().astimezone().strftime("%H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{HELD_BY}{os.getpid()} since {started}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def holder(path: Path) -> str | None:
    """Return which process holds a lock, in words; None if no process does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Open a lock file, or make it.

    Raises:
        KdistillError: if it is not a lock of kdistill's, since writing to it could destroy something.
    """
    refused = KdistillError(f"{path} is not a lock file of kdistill: remove it, rm {shlex.quote(str(path))}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise refused from None
        raise
    status = os.fstat(descriptor)
    regular = stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
    if not regular or not HELD_BY.encode().startswith(os.pread(descriptor, len(HELD_BY), 0)):
        os.close(descriptor)
        raise refused
    return descriptor


def _read(descriptor: int) -> str:
    """Return what a lock's holder wrote, which it does just after taking the lock."""
    for _ in range(50):
        if text := os.pread(descriptor, 200, 0):
            return text.decode(errors="replace")
        time.sleep(0.01)
    return "another process"


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
