"""Text on the terminal and in figures: names of any characters are printed and drawn as text."""

from __future__ import annotations

import errno
import warnings

import numpy as np
import pytest

from kdistill import Reporter
from kdistill.console import printable
from kdistill.errors import first_line
from kdistill.evaluation import figures
from kdistill.stages.correct_bias import CorrectBiasResult
from kdistill.workspace import Input, Manifest, Workspace

HOSTILE = [
    "[/dog]",
    "[red]cat",
    ":cat:",
    "\x1b[31mred",
    "two\nlines",
    "\u202egnp.exe",
    "\x9b2J",
    "\udcff",
    "$\\x$",
    "_",
]
SHOWN = [*HOSTILE[:3], r"\x1b[31mred", r"two\nlines", r"\u202egnp.exe", r"\x9b2J", r"\udcff", "$\\x$", "_"]


def test_printable():
    """Control, invisible and direction characters are escaped; letters, emoji and joiners stay."""
    assert [printable(text) for text in HOSTILE] == SHOWN
    for text in ("ä猫", "👩\u200d🔬", "می\u200cشود", "a\xa0b", "back\\slash"):
        assert printable(text) == text


def test_lines_and_warnings(capsys):
    """Lines and warnings are printable."""
    for text in HOSTILE:
        Reporter().say(text)
        Reporter().warn(text)
    out, err = capsys.readouterr()
    assert out.splitlines() == SHOWN
    assert err.splitlines() == [f"warning: {text}" for text in SHOWN]


def test_table(capsys):
    """Cells, headings and the title are text instead of Rich markup; the note keeps its line breaks."""
    Reporter().table(HOSTILE[0], ["name", HOSTILE[1]], [(text, "1") for text in HOSTILE], note=f"one\n{HOSTILE[3]}")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == SHOWN[0]
    assert lines[1].split() == ["name", SHOWN[1]]
    assert [line.rstrip("1").rstrip() for line in lines[3:-2]] == SHOWN
    assert lines[-2:] == ["one", SHOWN[3]]


def test_table_of_classes(capsys):
    """`correct-bias` prints class names as text."""
    classes = [{"name": name, "wanted": 1, "before": 1, "after": 1, "shift": 0.0} for name in HOSTILE]
    results = {"classes": classes, "inputs": 9, "test_rows": 9, "student_test_errors": 1, "test_errors": 1}
    manifest = Manifest(kind="student", settings={}, inputs=(Input("student", "student", ""),), results=results)
    CorrectBiasResult(Workspace().student("student-corrected"), manifest).show(Reporter())
    out = capsys.readouterr().out
    assert all(f"\n{text} " in out for text in SHOWN)


@pytest.mark.slow
def test_figures(tmp_path):
    """Names of any characters are drawn without Matplotlib's mathtext and without a warning about a missing glyph."""
    names = [*HOSTILE, "猫", "\x00", "50% $5 $6", r"$\frac{$"]
    curve = figures.Curve("猫\x00$\\x$", "student", "test", "accuracy", [1.0], [0.5], [0.4], [2.0], [2.1])
    example = figures.Example(None, 0, np.zeros(len(names)))
    line = figures.Line(HOSTILE[3], [1.0, 2.0], [3.0, 4.0], [0.1, 0.1], 5.0)
    heat = figures.HeatMap(HOSTILE[4], ["1", "2"], ["0.1", "0.1"], [1.0, 2.0], [True, False])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classes = figures.dark_knowledge([example], names, 2.0, HOSTILE[3], top=20)
        figures.save(classes, tmp_path / "classes.png")
        figures.save(figures.errors_over("T", [line], "errors", HOSTILE[4]), tmp_path / "line.png")
        figures.save(figures.heat_maps([heat], HOSTILE[0]), tmp_path / "heat.png")
        for ending in ("svg", "pdf"):
            figures.save(figures.learning_curves([curve], HOSTILE[8], "loss"), tmp_path / f"curve.{ending}")
    assert [label.get_text() for label in classes.axes[1].get_xticklabels()][: len(SHOWN)] == SHOWN


def test_first_line():
    """The first line of an error has no color codes and does not end in a colon."""
    assert (
        first_line(ValueError("\x1b[1mCould not load.\x1b[0m Example:\n\nwhy\nmore")) == "Could not load. Example: why"
    )
    assert first_line(ValueError("Example:")) == "Example"
    assert first_line(OSError(errno.EISDIR, "read failed (time = now\n, errno = 21)")) == "Is a directory"
    assert first_line(OSError(errno.ENOENT, "No such file", "a")) == "[Errno 2] No such file: 'a'"
