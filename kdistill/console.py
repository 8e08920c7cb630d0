"""What a person sees: results on standard output, progress and warnings on standard error, drawn by Rich."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


UNPRINTABLE = re.compile(  # controls, invisible characters, those that change the direction of text, lone surrogates
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


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


def hush() -> None:
    """Give the process's raw standard error to nobody, and keep Python's own for messages to the user.

    TensorFlow's C++ side writes there directly, some of it before any log level is obeyed (TensorFlow 2.21), so
    nothing less reaches every line. For a process that is kdistill's own; `--debug` leaves it out.
    """
    if sys.stderr is None:  # closed by the caller
        return
    sys.stderr.flush()
    kept = os.dup(2)
    sys.stderr = os.fdopen(kept, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    warnings.filterwarnings("ignore")


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
