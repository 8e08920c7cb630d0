"""What all figures share: colors, fonts, titles, and how they are written.

The background is white and the ink dark, so that a figure looks the same on a light page, a dark page and paper.
"""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from kdistill.console import printable

NAVY, ORANGE = "#1f2a6b", "#e8710a"
TEACHERS = (NAVY, "#4b74c9", "#7a5bb5", "#2b8a9e")
STUDENTS = (ORANGE, "#b8321f", "#2f8f4e", "#d6489b", "#8c6d1f", "#6b6b6b")
DASHES = (0, (3, 1.6))
MARKERS = (None, "o", "s", "^", "D", "v")  # tell networks of the same color apart
NAME, CLASS_NAME = 28, 20  # longest name of a network and of a class, in characters

STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e8",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "savefig.dpi": 160,
    "svg.fonttype": "path",
    "svg.hashsalt": "kdistill",  # the same figure gives the same bytes
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names of classes and networks may have dollar signs
    "text.usetex": False,
}


def shorten(text: str, length: int) -> str:
    """Return a text of at most `length` characters; the middle of a longer one becomes an ellipsis.

    Names of networks often differ only at their end.
    """
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def title_of(figure: Figure, title: str, share: float = 1.0) -> None:
    """Set a figure's title, wrapped to a fraction of its width."""
    width = int(11.5 * figure.get_figwidth() * share)
    lines = textwrap.wrap(printable(title), width, max_lines=4, placeholder=" …")
    figure.suptitle("\n".join(lines), x=0.008, ha="left", fontsize=11, color="#555555")


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's extension. The same figure gives the same bytes."""
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[path.suffix[1:]]
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the font draws boxes for characters that it lacks
        figure.savefig(path, metadata=undated, facecolor="white")
