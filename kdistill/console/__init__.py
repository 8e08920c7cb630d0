"""The console: messages (`reporter`, `text`), Ctrl-C (`interrupts`), the noise of libraries (`native_stderr`)."""

from kdistill.console.reporter import Reporter, SilentReporter, Steps, Table
from kdistill.console.text import printable, printable_lines

__all__ = ["Reporter", "SilentReporter", "Steps", "Table", "printable", "printable_lines"]
