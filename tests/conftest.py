"""Fixtures: the built-in digits, a workspace after all four stages, and the command line."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from helpers import QUICK, Run, run_command

from kdistill import data

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores Ctrl-C


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs kdistill in this process, with an empty directory as the working directory."""
    monkeypatch.setattr("kdistill.cli.silence_native_stderr", lambda: None)
    monkeypatch.chdir(tmp_path)
    return run_command


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace on the digits where everything is up to date. Tests must not write to it."""
    place = tmp_path_factory.mktemp("made") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdistill.cli.silence_native_stderr", lambda: None)
        for command in (
            ["train-teacher", *QUICK],
            ["soften"],
            ["train-student", *QUICK],
            ["plot"],
        ):
            outcome = run_command(*command, "--workspace", place)
            assert outcome.code == 0, outcome.err
    return place


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    """Return a copy of `made` at `./workspace`, which a test may change."""
    return Path(shutil.copytree(made, tmp_path / "workspace"))


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.resolve("digits").load()
