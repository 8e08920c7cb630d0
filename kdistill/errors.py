"""The one kind of error that is the user's to mend."""

import os
import re


class KdistillError(Exception):
    """Something the user can mend: one line that says what, where, and with which command."""


class UsageError(KdistillError):
    """A setting that no run could have; the command line exits 2 for it and 1 for the rest."""


def first_line(error: BaseException) -> str:
    """The one line that says most in the message of an error, of TensorFlow's, Keras's or anyone's."""
    if isinstance(error, OSError) and error.errno and not error.filename:  # HDF5's are long, and begin with the time
        return os.strerror(error.errno)
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", str(error)).splitlines()]  # Keras prints in bold
    lines = [line for line in lines if line]
    if not lines:
        return type(error).__name__
    if lines[0] == "in user code:":  # by TensorFlow, which says what was wrong last
        return lines[-1].removeprefix(f"{type(error).__name__}: ")
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):  # by Keras, around a layer's own
        return lines[1]
    first_line, *more = lines
    while first_line.endswith(":") and more:
        first_line += f" {more.pop(0)}"
    return first_line[:300].rstrip(":")
