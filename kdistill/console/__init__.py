"""What a person sees: results on standard output, progress and warnings on standard error, drawn by Rich."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


LOG_BYTES = 1 << 20  # of the end of the log, the most that is kept
UNPRINTABLE = re.compile(  # controls, invisible characters, those that change the direction of text, lone surrogates
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_hushed = False


def printable(text: str) -> str:
    r"""Escape the characters by which a text could do more on a terminal than be read, e.g. as `\x1b` or `\n`.

    Names of classes, files and datasets come from anyone. Whatever prints or draws a line of text calls this: the
    methods of `Reporter`, the command line's errors, the figures.

    Args:
        text: one line; a newline in it is escaped too.

    Returns:
        The text with each such character as a Python escape sequence.
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each of them `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def silence_native_stderr() -> None:
    """Send the process's raw standard error to a log, and keep Python's own for messages to the user.

    TensorFlow's C++ side writes there directly, some of it before any log level is obeyed (TensorFlow 2.21), so
    nothing less reaches every line. For a process that is kdistill's own; `--debug` leaves it out. The log is a file
    without a name, which is gone with the process; see `kept_log` and `watched`.
    """
    import tempfile

    global _hushed  # noqa: PLW0603 - a process has one standard error
    if _hushed:
        return
    _hushed = True
    if sys.stderr is None:  # closed by the caller
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=encoding, errors="backslashreplace")
    try:
        log, name = tempfile.mkstemp()
        os.unlink(name)
    except OSError:  # no directory for temporary files can be written to
        log = os.open(os.devnull, os.O_RDWR)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable(2)
    warnings.filterwarnings("ignore")


def kept_log(workspace: Path) -> Path | None:
    """Keep what was written to the raw standard error since `silence_native_stderr`.

    Args:
        workspace: where to write `kdistill.log`. If it is no directory, or can't be written to, the log goes to a new
            file in the directory for temporary files.

    Returns:
        The file, or None if there is nothing to keep or no place for it.
    """
    import tempfile

    size = os.fstat(2).st_size if _hushed else 0
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


def named(log: Path | None) -> str:
    """Return what an error message says of the log that `kept_log` kept."""
    return f"; messages of the libraries are in {log}" if log else ""


@contextlib.contextmanager
def watched(workspace: Path) -> Iterator[None]:
    """Tell the user if the process dies where no Python code of it can: aborted by C++ code, or killed.

    A child process waits on a pipe for the end of this process, says that it died, and keeps its log. It does nothing
    if the block ends in any other way. Without `silence_native_stderr` there is no child, as the user then sees everything.
    """
    if not _hushed:
        yield
        return
    ending, alive = os.pipe()
    child = 0
    try:
        child = _forked(alive, ending, workspace)
        yield
    finally:
        os.write(alive, b".")
        os.close(alive)
        os.close(ending)
        if child:
            os.waitpid(child, 0)


def _forked(alive: int, ending: int, workspace: Path) -> int:
    """Start the child of `watched`, in which signals are blocked: Ctrl-C is sent to all processes of a terminal.

    Returns:
        Its process number, or 0 if no more processes are allowed: the command works without.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = os.fork()
    except OSError:
        return 0
    else:
        if not child:
            os.close(alive)
            _watch(ending, workspace)
        return child
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(ending: int, workspace: Path) -> NoReturn:
    """Do the work of the child."""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):  # whoever reads this process's output shall see its end
            os.dup2(nowhere, stream)
        if not os.read(ending, 1):
            path = kept_log(workspace)
            crashed = path and b"Fatal Python error" in path.read_bytes()  # by faulthandler
            what = "crashed" if crashed else "was killed, e.g. for lack of memory"
            print(printable(f"error: the process {what}{named(path)}"), file=sys.stderr, flush=True)
    finally:
        os._exit(0)


@contextlib.contextmanager
def silent_stdout() -> Iterator[None]:
    """What a library prints inside goes nowhere."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """A library that is used inside is not heard: neither what it prints, nor its log, nor its warnings."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with silent_stdout(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


class Reporter:
    """How a stage tells its user what it does. With `quiet`, only warnings and what was asked for are said."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """A line of progress or of result."""
        if not self.quiet:
            print(printable(text), flush=True)

    def warn(self, text: str) -> None:
        print(f"warning: {printable(text)}", file=sys.stderr, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
        """A table; the first column is text, the others are numbers. The note may have several lines."""
        if self.quiet:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text  # what a str is not: free of Rich's markup

        heading, caption = Text(printable(title), "bold"), Text(printable_lines(note), "dim") if note else None
        table = Table(title=heading, caption=caption, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.title_justify = table.caption_justify = "left"
        for number, column in enumerate(columns):
            table.add_column(Text(printable(column)), justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console = _console(stderr=False)
        if not console.is_terminal:  # a pipe has no width to fit into
            console.width = 10_000
        console.width = max(console.width, console.measure(table, options=console.options.update(width=500)).maximum)
        console.print(table, crop=False)  # wrapped by a narrow terminal, but no number is cut

    @contextlib.contextmanager
    def steps(self, what: str, total: int) -> Iterator[Steps]:
        """Progress over `total` steps: a live line on a terminal, plain lines elsewhere, nothing with `quiet`."""
        console = _console(stderr=True)
        if self.quiet or not console.is_terminal:
            yield Steps(None, self)
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task(printable(what), total=total, note="")
            yield Steps(progress, self)


class Steps:
    """The progress of one piece of work."""

    def __init__(self, progress: Progress | None, reporter: Reporter) -> None:
        self._progress = progress
        self._reporter = reporter

    def advance(self, steps: float = 1) -> None:
        if self._progress:
            self._progress.advance(self._progress.task_ids[0], steps)

    def note(self, line: str, short: str) -> None:
        """What was reached: in short beside the bar on a terminal, as a line of its own elsewhere."""
        if self._progress:
            self._progress.update(self._progress.task_ids[0], note=printable(short))
        else:
            self._reporter.say(line)
