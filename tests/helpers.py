"""What the tests share: paths, the command line in this process, and small data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from kdistill import data
from kdistill.console import Reporter

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MNIST = Path(os.environ.get("KDISTILL_MNIST") or ROOT.parent / "shared" / "data" / "mnist.npz")
QUICK = ["--model", "mlp-30", "--epochs", "5", "--batch-size", "32", "--learning-rate", "0.003"]
HEAVY = ("tensorflow", "keras", "h5py", "numpy", "matplotlib")
KDISTILL = [sys.executable, "-m", "kdistill"]


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit status and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def run_command(*arguments: object) -> Outcome:
    from kdistill.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Outcome(result.exit_code, result.stdout, result.stderr)


def imports_of(*arguments, cwd):
    """The exit status and the heavy modules that a command has imported by its end."""
    code = (
        "import sys\n"
        f"sys.argv = ['kdistill', *{list(map(str, arguments))!r}]\n"
        "from kdistill.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code\n"
        f"open('imported', 'w').write(repr((code or 0, [m for m in {HEAVY!r} if m in sys.modules])))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=cwd)
    return eval((cwd / "imported").read_text())


def stamps(workspace):
    """When each artifact was last written."""
    files = [
        *workspace.glob("*s/*/manifest.json"),
        *workspace.glob("soft-targets/*.h5"),
        workspace / "plots/manifest.json",
    ]
    return {str(path.relative_to(workspace)): path.stat().st_mtime_ns for path in files if path.exists()}


def saved_weights(place):
    """The bytes of all variables, those of the optimizer too."""
    with np.load(place / "checkpoint.npz") as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files if name != "head"}


def write_npz(path: Path, dataset: data.Dataset, **changed: object) -> Path:
    """Write a dataset as an `.npz`, some of its arrays changed (None leaves one out)."""
    arrays = {
        "x_train": dataset.train.read(),
        "y_train": dataset.train.labels,
        "x_test": dataset.test.read(),
        "y_test": dataset.test.labels,
    } | changed
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


class Stops(Reporter):
    """A user who presses Ctrl-C after some epochs."""

    def __init__(self, after):
        super().__init__(quiet=True)
        self.left = after

    @contextmanager
    def steps(self, what, total):
        yield self

    def advance(self, steps=1):
        pass

    def note(self, line, short):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
