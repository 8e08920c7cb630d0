"""The console: messages (`reporter`, `text`), Ctrl-C (`interrupts`), the noise of libraries (`native_stderr`)."""

from kdistill.console.reporter import Reporter, Steps
from kdistill.console.text import printable, printable_lines

__all__ = ["Reporter", "Steps", "printable", "printable_lines"]
