"""Messages of native code and libraries: kept away from the user, and saved if the process fails."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from kdistill.console.text import printable

LOG_BYTES = 1 << 20  # of the end of the log, the most that is saved
_silenced = False


def silence_native_stderr() -> None:
    """Send what native code writes to standard error to a log, and keep Python's standard error for messages.

    TensorFlow's C++ code writes to the file descriptor, some of it before it reads any log level (TensorFlow 2.21).
    Only for a process of kdistill's own; `--debug` turns it off. The log is an unnamed file that ends with the process;
    see `keep_log` and `report_death`.
    """
    import tempfile

    global _silenced  # noqa: PLW0603 - a process has one standard error
    if _silenced:
        return
    _silenced = True
    if sys.stderr is None:  # closed by the caller
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=encoding, errors="backslashreplace")
    try:
        log, name = tempfile.mkstemp()
        os.unlink(name)
    except OSError:  # no temporary directory is writable
        log = os.open(os.devnull, os.O_RDWR)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable(2)
    warnings.filterwarnings("ignore")


def keep_log(workspace: Path) -> Path | None:
    """Save the log of native code.

    Args:
        workspace: where to write `kdistill.log`. If that is not possible, the log goes to a new temporary file.

    Returns:
        The file, or None if the log is empty or there is no place for it.
    """
    import tempfile

    size = os.fstat(2).st_size if _silenced else 0
    if not size:
        return None
    text = os.pread(2, LOG_BYTES, max(0, size - LOG_BYTES))
    for directory in (workspace, None):
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(".log", "kdistill-", directory)  # a new file: follows no link
            try:
                with open(descriptor, "wb") as stream:
                    stream.write(text)
                if directory is None:
                    return Path(name)
                os.replace(name, directory / "kdistill.log")
                return directory / "kdistill.log"
            except OSError:
                os.unlink(name)
    return None


def log_hint(log: Path | None) -> str:
    """Return the part of an error message that names the saved log, empty for None."""
    return f"; messages of the libraries are in {log}" if log else ""


@contextlib.contextmanager
def report_death(workspace: Path) -> Iterator[None]:
    """Tell the user if the process dies where its Python code can't: aborted by C++ code, or killed.

    A child process waits on a pipe for the end of this process, prints one line and saves the log. It does nothing if
    the block ends in any other way. Without `silence_native_stderr` there is no child, since the user sees everything.
    """
    if not _silenced:
        yield
        return
    ending, alive = os.pipe()
    child = 0
    try:
        child = _fork_child(alive, ending, workspace)
        yield
    finally:
        os.write(alive, b".")
        os.close(alive)
        os.close(ending)
        if child:
            os.waitpid(child, 0)


def _fork_child(alive: int, ending: int, workspace: Path) -> int:
    """Start the child. Signals are blocked in it, since Ctrl-C goes to all processes of a terminal.

    Returns:
        Its process number, or 0 if no more processes are allowed.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = os.fork()
    except OSError:
        return 0
    else:
        if not child:
            os.close(alive)
            _wait_for_death(ending, workspace)
        return child
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_death(ending: int, workspace: Path) -> NoReturn:
    """Wait in the child for the end of the parent."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):  # readers of the parent's output must see its end
            os.dup2(null, stream)
        if not os.read(ending, 1):
            path = keep_log(workspace)
            crashed = path and b"Fatal Python error" in path.read_bytes()  # by faulthandler
            death = "crashed" if crashed else "was killed, e.g. for lack of memory"
            if signal.SIGINT in signal.sigpending():  # blocked here, so Ctrl-C is pending
                death = "was interrupted"
            print(printable(f"error: the process {death}{log_hint(path)}"), file=sys.stderr, flush=True)
    finally:
        os._exit(0)


@contextlib.contextmanager
def silent_stdout() -> Iterator[None]:
    """Discard what a library prints."""
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        yield


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Discard what a library prints, logs and warns of."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with silent_stdout(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
