"""Shared by the tests: paths, the command line run in this process, and small datasets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from kdistill import data
from kdistill.console import Reporter

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MNIST = Path(os.environ.get("KDISTILL_MNIST") or ROOT.parent / "shared" / "data" / "mnist.npz")
QUICK = "--model mlp-30 --epochs 5 --batch-size 32 --learning-rate 0.003 --xla off".split()  # XLA compiles for seconds
needs_mnist = pytest.mark.skipif(
    not MNIST.exists(), reason=f"needs mnist.npz: set KDISTILL_MNIST to its path (not found: {MNIST})"
)
HEAVY = ("tensorflow", "keras", "h5py", "numpy", "matplotlib", "ray")
KDISTILL = [sys.executable, "-m", "kdistill"]


@dataclass(frozen=True)
class Outcome:
    """The exit status and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def up_to_date(self) -> bool:
        """Whether the command succeeded and reported that there was nothing to do."""
        return self.code == 0 and "up to date" in self.out.lower()


Run = Callable[..., Outcome]


def run_command(*arguments: object) -> Outcome:
    """Run the command line in this process."""
    from kdistill.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Outcome(result.exit_code, result.stdout, result.stderr)


def succeed(run: Run, *arguments: object) -> Outcome:
    """Run a command that must succeed, and return its outcome."""
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def results_of(path: Path) -> dict[str, Any]:
    """Return the results in the manifest of an artifact."""
    return json.loads((path / "manifest.json").read_text())["results"]


def commands() -> dict[str, Any]:
    """Return the subcommands of `kdistill` by name."""
    from kdistill.cli import app

    return get_command(app).commands


def mentions(text: str, *words: object) -> bool:
    """Check whether a line of the text has all of the words, in any order and any case.

    A word is e.g. an option, a path or a number. A number matches as a whole: 5 is not found in 15 or 0.5.
    """
    patterns = [re.compile(rf"(?<![\w.]){re.escape(str(word))}(?!\w)", re.IGNORECASE) for word in words]
    return any(all(pattern.search(line) for pattern in patterns) for line in text.splitlines())


def imports_of(*arguments, cwd):
    """Run a command in a new process; return its exit status and the heavy modules that it imported."""
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
    """Return the time at which each artifact was last written, by its path."""
    files = [
        *workspace.glob("*s/*/manifest.json"),
        *workspace.glob("soft-targets/*.h5"),
        workspace / "plots/manifest.json",
    ]
    return {str(path.relative_to(workspace)): path.stat().st_mtime_ns for path in files if path.exists()}


def saved_weights(place):
    """Return the bytes of all variables of a network, including its optimizer's."""
    with np.load(place / "checkpoint.npz") as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files if name != "head"}


def write_npz(path: Path, dataset: data.Dataset, **changed: object) -> Path:
    """Write a dataset to an `.npz` file with some of its arrays replaced (None leaves one out)."""
    arrays = {
        "x_train": dataset.train.read(),
        "y_train": dataset.train.labels,
        "x_test": dataset.test.read(),
        "y_test": dataset.test.labels,
    } | changed
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def count_errors(logits, labels):
    """Return the number of rows whose most likely class is not the label."""
    return int((logits.argmax(axis=1) != labels).sum())


class InterruptAfter(Reporter):
    """A reporter that simulates Ctrl-C after some epochs."""

    def __init__(self, epochs):
        super().__init__(quiet=True)
        self.left = epochs

    @contextmanager
    def steps(self, *_, **__):
        yield self

    def advance(self, steps=1):
        pass

    def note(self, line, short):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
