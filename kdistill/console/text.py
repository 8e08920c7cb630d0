r"""Text that is safe to print: class, file and dataset names come from anyone."""

from __future__ import annotations

import re

UNPRINTABLE = re.compile(  # controls, invisible characters, those that change the direction of text, lone surrogates
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""Escape the characters that do something to a terminal besides being read, e.g. as `\x1b` or `\n`.

    Everything that prints or draws a line of text calls this: the methods of `Reporter`, the command line's errors, the
    figures.

    Args:
        text: one line; a newline in it is escaped too.

    Returns:
        The text with each such character as a Python escape sequence.
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """Return a text of several lines with each line `printable`."""
    return "\n".join(map(printable, text.split("\n")))
