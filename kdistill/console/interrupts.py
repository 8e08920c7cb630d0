"""Ctrl-C in a process of kdistill's own. Imports almost nothing, so that it works from the start."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


def exit_at_once() -> None:
    """Let Ctrl-C end the process at once with status 130 and no traceback, since no work is in progress.

    If the caller ignores interrupts, as `nohup` does, they stay ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def ignore() -> None:
    """Ignore Ctrl-C: the work is done, and TensorFlow takes a second to shut down without Python's handlers."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _exit(_signal: int, _frame: object) -> None:
    os._exit(130)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt while work is in progress, if `exit_at_once` was called before."""
    ours = signal.getsignal(signal.SIGINT) is _exit
    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, _exit)


@contextlib.contextmanager
def fatal() -> Iterator[None]:
    """Let Ctrl-C kill the process while native code waits in the block, where no Python code can run."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
