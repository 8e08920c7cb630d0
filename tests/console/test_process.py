"""A command that is interrupted, killed or crashes: its exit status, its one line, and the log that it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from helpers import mentions


def kdistill(place, stage, *arguments, prepare="", encoding="utf-8"):
    """Run `kdistill status` in a new process, with statements in the place of the stage."""
    code = (
        "import os, resource, signal, sys\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"{prepare}\n"
        "from kdistill.__main__ import main\n"
        "class Result:\n"
        "    exit_status = 0\n"
        "    def as_json(self): return 'nothing'\n"
        "def run(*_, **__):\n"
        f"    {stage}\n"
        "    return Result()\n"
        "module = type(sys)('kdistill.stages.status')\n"
        "module.run = run\n"
        "sys.modules[module.__name__] = module\n"
        f"sys.argv = ['kdistill', 'status', *{arguments!r}]\n"
        "main()\n"
    )
    (place / "temporary").mkdir()
    (place / "driver.py").write_text(code)
    environment = {**os.environ, "TMPDIR": str(place / "temporary"), "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    environment["PYTHONIOENCODING"] = encoding
    return subprocess.run(
        [sys.executable, "-m", "driver"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def files(place):
    found = (str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    return [name for name in found if name != "driver.py"]


CHECK = "os.write(2, b'Check failed'); "
DEATHS = {  # statements, with the exit status and a word of the error
    "os.abort()": (-signal.SIGABRT, "crashed"),
    "os.kill(os.getpid(), signal.SIGKILL)": (-signal.SIGKILL, "killed"),
    "raise RuntimeError('why')": (1, "RuntimeError: why"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_log_of_a_command_that_died(tmp_path, death):
    """The messages of native code are kept in a new file in the workspace, which the error names."""
    (tmp_path / "workspace").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "workspace/kdistill.log").symlink_to(tmp_path / "precious")
    done = kdistill(tmp_path, CHECK + death)
    code, word = DEATHS[death]
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert mentions(done.stderr, word, "workspace/kdistill.log")
    assert len(done.stderr.splitlines()) == 1
    log = (tmp_path / "workspace/kdistill.log").read_text()
    assert log.startswith("Check failed")
    assert ("Fatal Python error: Aborted" in log) == (code == -signal.SIGABRT)
    assert (tmp_path / "precious").read_text() == "precious"


def test_log_without_a_workspace(tmp_path):
    """Without a workspace, the log goes to the directory for temporary files."""
    done = kdistill(tmp_path, CHECK + "os.abort()")
    (name,) = files(tmp_path)
    assert name.startswith("temporary/")
    assert str(tmp_path / name) in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "code", "error"),
    [
        ("pass", 0, ""),
        ("from kdistill import KdistillError; raise KdistillError('wrong')", 1, "error: wrong\n"),
        (
            "from kdistill.console.native_stderr import silence_native_stderr; silence_native_stderr(); print('printed', file=sys.stderr); sys.exit()",
            0,
            "printed\n",
        ),
    ],
    ids=["success", "refusal", "silence_native_stderr twice"],
)
def test_no_log_of_a_command_that_ends(tmp_path, stage, code, error):
    """A command that succeeds, or is refused, leaves no log."""
    (tmp_path / "workspace").mkdir()
    done = kdistill(tmp_path, CHECK + stage, "--json")
    assert (done.returncode, done.stderr, files(tmp_path)) == (code, error, [])


def test_empty_log_is_not_kept(tmp_path):
    """An unexpected error without messages of native code leaves no log."""
    done = kdistill(tmp_path, "raise RuntimeError('why')")
    assert done.returncode == 1
    assert mentions(done.stderr, "RuntimeError: why", "--debug")
    assert files(tmp_path) == []


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize("module", ["kdistill.cli", "typer", "kdistill.workspace"])
def test_interrupt_of_an_import(tmp_path, module):
    """Ctrl-C while modules are imported exits with 130 and prints nothing."""
    hook = f"class Hook:\n    def find_spec(self, name, *_):\n        if name == {module!r}: {INTERRUPT}\n"
    done = kdistill(tmp_path, "raise RuntimeError", prepare=f"{hook}sys.meta_path.insert(0, Hook())")
    assert (done.returncode, done.stdout, done.stderr, files(tmp_path)) == (130, "", "", [])


@pytest.mark.parametrize("stage", [INTERRUPT, f"exec({INTERRUPT!r})"])
def test_interrupt_of_a_command(tmp_path, stage):
    """Ctrl-C exits with 130 and one line, also inside `exec`, after which Python ends by the signal."""
    done = kdistill(tmp_path, CHECK + stage)
    assert done.returncode == 130
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
    """Ctrl-C while Python shuts down does not change the exit status of a command that succeeded."""
    done = kdistill(tmp_path, "pass", "--json", prepare=SHUTDOWN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing" in done.stdout


def test_ignored_interrupt_stays_ignored(tmp_path):
    """A process that ignores Ctrl-C, e.g. under `nohup`, keeps ignoring it."""
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert kdistill(tmp_path, f"{INTERRUPT}; sys.exit()", prepare=ignored).returncode == 0


def test_terminal_that_lacks_a_character(tmp_path):
    """Characters that the terminal cannot show are escaped."""
    say = "from kdistill import Reporter; Reporter().say('\u732b'); Reporter().table('t', ['\u732b'], []); sys.exit()"
    done = kdistill(tmp_path, say, encoding="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(r"\u732b") == 2
