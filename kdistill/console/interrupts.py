"""What Ctrl-C does in a process of kdistill's own. Imports next to nothing, so that it works from the start."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


def exit_at_once() -> None:
    """From here on, let Ctrl-C end the process with status 130, without a traceback: no work is under way.

    An interrupt that the caller set to be ignored, as `nohup` and scripts do, stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def ignore() -> None:
    """Let Ctrl-C do nothing: all is done, and TensorFlow takes a second to shut down, when Python has no handlers."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _exit(_signal: int, _frame: object) -> None:
    os._exit(130)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt while work is under way, if this process called `exit_at_once` before."""
    ours = signal.getsignal(signal.SIGINT) is _exit
    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, _exit)
