"""What the tests share: small real data, a workspace where all four stages have run, the command line in-process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kdistill import data
from kdistill.console import Reporter

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist.npz"
QUICK = ["--model", "mlp-30", "--epochs", "5", "--batch-size", "32", "--learning-rate", "0.003"]


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit status and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run kdistill's command line in this process, in an empty directory."""
    monkeypatch.setattr("kdistill.cli.hush", lambda: None)
    monkeypatch.chdir(tmp_path)
    return _run


def _run(*arguments: object) -> Outcome:
    from kdistill.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace on the digits in which everything is up to date; not to be written to."""
    place = tmp_path_factory.mktemp("made") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdistill.cli.hush", lambda: None)
        for command in (
            ["train-teacher", *QUICK],
            ["soften"],
            ["train-student", *QUICK],
            ["plot"],
        ):
            outcome = _run(*command, "--workspace", place)
            assert outcome.code == 0, outcome.err
    return place


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` at `./workspace`, to be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "workspace"))


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.resolve("digits").load()


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
