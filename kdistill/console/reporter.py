"""Messages, tables and progress. Results go to standard output, progress and warnings to standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kdistill.console.text import printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Table(NamedTuple):
    """A table of texts, to be printed by `Reporter.table(*table)` or shown in another way.

    Attributes:
        title: above it.
        columns: the headings; the first column is text, the others are numbers.
        rows: of cells, as shown.
        note: below it, of one or more lines.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Reporter:
    """Tells the user what a stage does.

    Args:
        quiet: print warnings only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print a line of progress or of a result."""
        if not self.quiet:
            print(printable(text), flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, also if quiet."""
        print(f"warning: {printable(text)}", file=sys.stderr, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
        """Print a table. The arguments are those of `Table`."""
        if self.quiet:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text  # not interpreted as Rich markup, which a str would be

        heading, caption = Text(printable(title), "bold"), Text(printable_lines(note), "dim") if note else None
        table = Table(title=heading, caption=caption, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.title_justify = table.caption_justify = "left"
        for number, column in enumerate(columns):
            table.add_column(Text(printable(column)), justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console = _console(stderr=False)
        if not console.is_terminal:  # the width of a pipe is not limited
            console.width = 10_000
        console.width = max(console.width, console.measure(table, options=console.options.update(width=500)).maximum)
        console.print(table, crop=False)  # a narrow terminal wraps it, and no number is cut

    @contextlib.contextmanager
    def steps(self, task: str, total: int) -> Iterator[Steps]:
        """Show the progress of a task: a bar on a terminal, lines elsewhere, nothing if quiet."""
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
            progress.add_task(printable(task), total=total, note="")
            yield Steps(progress, self)


class SilentReporter(Reporter):
    """Prints nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def warn(self, text: str) -> None:
        pass


class Steps:
    """The progress of one task."""

    def __init__(self, progress: Progress | None, reporter: Reporter) -> None:
        self._progress = progress
        self._reporter = reporter

    def advance(self, steps: float = 1) -> None:
        """Add steps to those that are done."""
        if self._progress:
            self._progress.advance(self._progress.task_ids[0], steps)

    def note(self, line: str, short: str) -> None:
        """Show the state: `short` beside the bar on a terminal, `line` as a separate line elsewhere."""
        if self._progress:
            self._progress.update(self._progress.task_ids[0], note=printable(short))
        else:
            self._reporter.say(line)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)
