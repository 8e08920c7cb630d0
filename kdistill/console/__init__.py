"""The console: messages (`reporter`, `text`, `numbers`), Ctrl-C (`interrupts`), the noise of libraries (`native_stderr`)."""

from kdistill.console.numbers import NumberFormat, five_digits
from kdistill.console.reporter import Reporter, SilentReporter, Steps, Table
from kdistill.console.text import printable, printable_lines

__all__ = [
    "NumberFormat",
    "Reporter",
    "SilentReporter",
    "Steps",
    "Table",
    "five_digits",
    "printable",
    "printable_lines",
]
