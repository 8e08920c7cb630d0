"""What reaches the terminal: names are printed as text, and a command that is stopped or dies says so in one line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings

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
    """Controls, invisible and direction characters are escaped; letters, emoji and joiners stay."""
    assert [printable(text) for text in HOSTILE] == SHOWN
    for text in ("ä猫", "👩\u200d🔬", "می\u200cشود", "a\xa0b", "back\\slash"):
        assert printable(text) == text


def test_lines_and_warnings(capsys):
    for text in HOSTILE:
        Reporter().say(text)
        Reporter().warn(text)
    out, err = capsys.readouterr()
    assert out.splitlines() == SHOWN
    assert err.splitlines() == [f"warning: {text}" for text in SHOWN]


def test_table(capsys):
    """Cells, headings and title are text, not Rich's markup; the note keeps its line breaks."""
    Reporter().table(HOSTILE[0], ["name", HOSTILE[1]], [(text, "1") for text in HOSTILE], note=f"one\n{HOSTILE[3]}")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == SHOWN[0]
    assert lines[1].split() == ["name", SHOWN[1]]
    assert [line.rstrip("1").rstrip() for line in lines[3:-2]] == SHOWN
    assert lines[-2:] == ["one", SHOWN[3]]


def test_table_of_classes(capsys):
    """`correct-bias` shows classes of any name."""
    classes = [{"name": name, "wanted": 1, "before": 1, "after": 1, "shift": 0.0} for name in HOSTILE]
    results = {"classes": classes, "inputs": 9, "test_rows": 9, "student_test_errors": 1, "test_errors": 1}
    manifest = Manifest(kind="student", settings={}, inputs={"student": Input("student", "")}, results=results)
    CorrectBiasResult(Workspace().student("student-corrected"), manifest).show(Reporter())
    out = capsys.readouterr().out
    assert all(f"\n{text} " in out for text in SHOWN)


def test_figures(tmp_path):
    """Names of any characters are drawn, without Matplotlib's mathtext, and without a warning of a missing glyph."""
    names = [*HOSTILE, "猫", "\x00", "50% $5 $6", r"$\frac{$"]
    curve = figures.Curve("猫\x00$\\x$", "student", "test", [1.0], [0.5], [0.4], [2.0], [2.1])
    example = figures.Example(None, 0, figures.np.zeros(len(names)))
    line = figures.Line(HOSTILE[3], [1.0, 2.0], [3.0, 4.0], [0.1, 0.1], 5.0)
    heat = figures.Heat(HOSTILE[4], ["1", "2"], ["0.1", "0.1"], [1.0, 2.0], [True, False])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classes = figures.dark_knowledge([example], names, 2.0, HOSTILE[3], top=20)
        figures.save(classes, tmp_path / "classes.png")
        figures.save(figures.errors_over("T", [line], HOSTILE[4]), tmp_path / "line.png")
        figures.save(figures.heat_maps([heat], HOSTILE[0]), tmp_path / "heat.png")
        for ending in ("svg", "pdf"):
            figures.save(figures.learning_curves([curve], HOSTILE[8]), tmp_path / f"curve.{ending}")
    assert [label.get_text() for label in classes.axes[1].get_xticklabels()][: len(SHOWN)] == SHOWN


def test_gist():
    """One line that says something, without colors, and without a colon that nothing follows."""
    assert (
        first_line(ValueError("\x1b[1mCould not load.\x1b[0m Example:\n\nwhy\nmore")) == "Could not load. Example: why"
    )
    assert first_line(ValueError("Example:")) == "Example"
    assert first_line(OSError(errno.EISDIR, "read failed (time = now\n, errno = 21)")) == "Is a directory"
    assert first_line(OSError(errno.ENOENT, "No such file", "a")) == "[Errno 2] No such file: 'a'"


def kdistill(place, stage, *arguments, prepare="", encoding="utf-8"):
    """Run `kdistill status` in a process of its own, with statements in place of the stage."""
    code = (
        "import os, resource, signal, sys\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"{prepare}\n"
        "from kdistill.__main__ import main\n"
        "def run(*_, **__):\n"
        f"    {stage}\n"
        "module = type(sys)('kdistill.stages.status')\n"
        "module.run, module.as_json = run, lambda *found: found\n"
        "sys.modules[module.__name__] = module\n"
        f"sys.argv = ['kdistill', 'status', *{arguments!r}]\n"
        "main()\n"
    )
    (place / "temporary").mkdir()
    (place / "driver.py").write_text(code)
    environment = {**os.environ, "TMPDIR": str(place / "temporary"), "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    environment["PYTHONIOENCODING"] = encoding
    return subprocess.run(
        [sys.executable, "-m", "driver"], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def files(place):
    found = (str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    return [name for name in found if name != "driver.py"]


CHECK = "os.write(2, b'Check failed'); "
DEATHS = {
    "os.abort()": (-signal.SIGABRT, "error: the process crashed; "),
    "os.kill(os.getpid(), signal.SIGKILL)": (
        -signal.SIGKILL,
        "error: the process was killed, e.g. for lack of memory; ",
    ),
    "raise RuntimeError('why')": (1, "error: RuntimeError: why (--debug shows where; "),
}


@pytest.mark.parametrize("death", DEATHS)
def test_log_of_a_command_that_died(tmp_path, death):
    """What C++ code wrote before is in the workspace, in a new file, and one line names it."""
    (tmp_path / "workspace").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "workspace/kdistill.log").symlink_to(tmp_path / "precious")
    done = kdistill(tmp_path, CHECK + death)
    code, said = DEATHS[death]
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert "workspace/kdistill.log" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    log = (tmp_path / "workspace/kdistill.log").read_text()
    assert log.startswith("Check failed")
    assert ("Fatal Python error: Aborted" in log) == (code == -signal.SIGABRT)
    assert (tmp_path / "precious").read_text() == "precious"


def test_log_without_a_workspace(tmp_path):
    """A workspace is not made for a log: that goes to the directory for temporary files."""
    done = kdistill(tmp_path, CHECK + "os.abort()")
    (name,) = files(tmp_path)
    assert name.startswith("temporary/")
    assert str(tmp_path / name) in done.stderr


@pytest.mark.parametrize(
    ("stage", "code", "said"),
    [
        ("return [], 'nothing'", 0, ""),
        ("from kdistill import KdistillError; raise KdistillError('wrong')", 1, "error: wrong\n"),
        (
            "from kdistill.console import silence_native_stderr; silence_native_stderr(); print('heard', file=sys.stderr); sys.exit()",
            0,
            "heard\n",
        ),
    ],
    ids=["success", "refusal", "silence_native_stderr twice"],
)
def test_no_log_of_a_command_that_ends(tmp_path, stage, code, said):
    (tmp_path / "workspace").mkdir()
    done = kdistill(tmp_path, CHECK + stage, "--json")
    assert (done.returncode, done.stderr, files(tmp_path)) == (code, said, [])


def test_empty_log_is_not_kept(tmp_path):
    done = kdistill(tmp_path, "raise RuntimeError('why')")
    assert (done.returncode, done.stderr) == (1, "error: RuntimeError: why (--debug shows where)\n")
    assert files(tmp_path) == []


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize("module", ["kdistill.cli", "typer", "kdistill.workspace"])
def test_interrupt_of_an_import(tmp_path, module):
    """Ctrl-C while modules are imported: status 130, and not a word."""
    hook = f"class Hook:\n    def find_spec(self, name, *_):\n        if name == {module!r}: {INTERRUPT}\n"
    done = kdistill(tmp_path, "raise RuntimeError", prepare=f"{hook}sys.meta_path.insert(0, Hook())")
    assert (done.returncode, done.stdout, done.stderr, files(tmp_path)) == (130, "", "", [])


@pytest.mark.parametrize("stage", [INTERRUPT, f"exec({INTERRUPT!r})"])
def test_interrupt_of_a_command(tmp_path, stage):
    """Ctrl-C at work: status 130, also where it hits code made from text, after which Python ends by the signal."""
    done = kdistill(tmp_path, CHECK + stage)
    assert done.returncode == 130
    assert "train-student and sweep" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert files(tmp_path) == []


SHUTDOWN = f"""
import atexit
atexit.register(lambda: {INTERRUPT})
class Last:
    def __del__(self, interrupt=os.kill, process=os.getpid()):
        interrupt(process, 2)
os.last = Last()
"""


def test_interrupt_after_a_command(tmp_path):
    """All is done: the status is the command's, also while Python shuts down and has removed its handlers."""
    done = kdistill(tmp_path, "return [], 'nothing'", "--json", prepare=SHUTDOWN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing" in done.stdout


def test_ignored_interrupt_stays_ignored(tmp_path):
    """As `nohup` and scripts set it for what runs in the background."""
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert kdistill(tmp_path, f"{INTERRUPT}; sys.exit()", prepare=ignored).returncode == 0


def test_terminal_that_lacks_a_character(tmp_path):
    say = "from kdistill import Reporter; Reporter().say('\u732b'); Reporter().table('t', ['\u732b'], []); sys.exit()"
    done = kdistill(tmp_path, say, encoding="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(r"\u732b") == 2
