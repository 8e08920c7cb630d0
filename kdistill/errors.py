"""Errors that the user can fix, each reported as one line. Standard library only."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator


class KdistillError(Exception):
    """An error that the user can fix. Its message is one line: what is wrong, where, and how to fix it."""


class UsageError(KdistillError):
    """A wrong option or setting. The command line exits with status 2 for it, and with 1 for other errors."""


def first_line(error: BaseException) -> str:
    """Return the most informative line of an error's message; TensorFlow, Keras and HDF5 write many."""
    if isinstance(error, OSError) and error.errno and not error.filename:  # HDF5's messages start with a date
        return os.strerror(error.errno)
    text = re.sub(r"\x1b\[[\d;]*m|\{\{.*?\}\} ?|\[Op:.*", "", str(error))  # Keras's bold type, TensorFlow's node names
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if not lines:
        return "the file ends early" if isinstance(error, EOFError) else type(error).__name__
    if lines[0] == "in user code:":  # TensorFlow states the error last
        return lines[-1].removeprefix(f"{type(error).__name__}: ")
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):  # Keras wraps a layer's error
        return lines[1]
    line, *more = lines
    while line.endswith(":") and more:
        line += f" {more.pop(0)}"
    return line[:300].rstrip(":")


@contextlib.contextmanager
def one_line_errors(
    what: str, *, fix: str = "", describe: Callable[[BaseException], str] = first_line
) -> Iterator[None]:
    """Raise any error of the block as a `KdistillError` whose message is `WHAT: DESCRIPTION; FIX`.

    Libraries, their plug-ins and user code raise errors of all types. `KdistillError` and `MemoryError` pass unchanged.

    Args:
        what: what failed, e.g. "data.npz is not a readable .npz file".
        fix: what the user can do about it.
        describe: returns the description of an error.
    """
    try:
        yield
    except (KdistillError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise KdistillError(f"{what}: {describe(error)}{fix and f'; {fix}'}") from error
