"""Symbolic links in a workspace: nothing outside the workspace is removed or replaced through them."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from helpers import QUICK

from kdistill import workspace
from kdistill.errors import KdistillError
from kdistill.workspace import Manifest, Workspace


@pytest.fixture
def precious(tmp_path):
    """Return a directory outside the workspace, and check that nothing in it changes."""
    place = tmp_path / "precious"
    (place / "inside/student").mkdir(parents=True)
    (place / "student").mkdir()
    for name in ("file", "inside/student/file", "student/file"):
        (place / name).write_text("precious")
    before = contents(place)
    yield place
    assert contents(place) == before


def contents(place):
    return {str(path.relative_to(place)): path.read_bytes() if path.is_file() else b"" for path in place.rglob("*")}


STUDENT = ["train-student", *QUICK, "--alpha", "1", "--dataset", "digits"]
LINKS = [  # the path that becomes a link to `precious`, and commands that must not follow it
    ("students/.hit.partial", [[*STUDENT, "--name", "hit"]]),
    ("students/.hit.lock", [[*STUDENT, "--name", "hit"]]),
    ("students/hit", [[*STUDENT, "--name", "hit"], [*STUDENT, "--name", "hit", "--force"]]),
    ("students/student", [["train-student", "--force"], ["train-student"], ["evaluate"], ["plot"]]),
    ("students", [["train-student", *QUICK, "--force"], ["train-student", "--alpha", "0.5"]]),
    ("teachers/teacher", [["train-teacher"], ["soften"]]),
    ("exports", [["export"]]),
    ("exports/student-tflite", [["export"]]),
    ("soft-targets", [["soften", "--force"], ["train-student", "--force"]]),
    ("soft-targets/soft-targets.h5", [["soften", "--force"], ["train-student", "--force"]]),
    ("sweeps", [["sweep"]]),
    ("sweeps/sweep", [["sweep"]]),
    ("sweeps/sweep/students", [["sweep"]]),
    ("plots", [["plot"], ["plot", "--force"]]),
    ("report", [["report"]]),
    ("tensorboard", [["train-student", *QUICK, "--tensorboard"]]),
    ("tensorboard/students", [["train-student", *QUICK, "--tensorboard", "--force"]]),
    ("tensorboard/students/student", [["train-student", *QUICK, "--tensorboard", "--force"]]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("link", "commands"), LINKS, ids=[link for link, _ in LINKS])
def test_link_inside_a_workspace_is_refused(run, workspace, precious, link, commands):
    """A command that meets a link prints one line with its path and the command that removes it."""
    put_link(workspace / link, precious)
    for command in commands:
        outcome = run(*command)
        assert (outcome.code, len(outcome.err.splitlines())) == (1, 1), (command, outcome)
        assert f"rm workspace/{link}" in outcome.err
    status = json.loads(run("status", "--json").out)
    if link in ("students/student", "teachers/teacher", "soft-targets/soft-targets.h5", "sweeps/sweep"):
        assert "damaged" in [artifact["state"] for artifact in status["artifacts"]]
        assert status["next"].startswith(f"rm workspace/{link} && kdistill ")


def put_link(link, target):
    """Replace a path by a link."""
    if link.is_dir():
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)


@pytest.mark.parametrize(
    ("link", "command"),
    [
        ("soft-targets/.soft-targets.h5.partial", ["soften"]),
        ("students/.student.partial", ["train-student", *QUICK]),
        ("plots/../.plots.partial", ["plot"]),
    ],
    ids=" ".join,
)
def test_up_to_date_follows_no_link(run, workspace, precious, link, command):
    """A stage that has nothing to do does not follow a link in the place of its partial directory."""
    put_link(workspace / link, precious)
    assert run(*command).up_to_date


@pytest.mark.slow
def test_workspace_itself_may_be_a_link(run, workspace, tmp_path):
    """The workspace directory can be a link."""
    shutil.move(workspace, tmp_path / "elsewhere")
    (tmp_path / "workspace").symlink_to("elsewhere")
    assert run("train-student", *QUICK).up_to_date
    assert run("plot", "--force").code == 0
    assert not (tmp_path / "elsewhere/.plots.lock").exists()


def test_links_inside_what_is_removed_are_not_followed(tmp_path, precious):
    """Links in a partial directory and in an old artifact are removed, and their targets are not."""
    artifact = Workspace(tmp_path / "w").teacher("teacher")
    artifact.partial.mkdir(parents=True)
    artifact.path.mkdir()
    for directory in (artifact.partial, artifact.path):
        (directory / "directory").symlink_to(precious)
        (directory / "checkpoint.npz").symlink_to(precious / "file")
        (directory / "manifest.json").symlink_to(precious / "file")
    with artifact.writing() as staging:
        assert os.listdir(staging.path) == []
        workspace.exchange(staging.path, artifact.path)
    assert os.listdir(artifact.path.parent) == ["teacher"]
    assert os.listdir(artifact.path) == []


def test_hard_links_of_a_kept_file_are_not_written_to(tmp_path):
    """A log with a second hard link, e.g. in a backup, is copied before it is written to."""
    artifact = Workspace(tmp_path / "w").soft_targets("soft-targets")
    artifact.partial.mkdir(parents=True)
    (artifact.partial / "blocks.log").write_text("half")
    os.link(artifact.partial / "blocks.log", tmp_path / "backup")
    with artifact.writing() as staging:
        (staging.path / "blocks.log").open("a").write("whole")
    assert (tmp_path / "backup").read_text() == "half"


def test_links_among_the_plots_are_replaced(tmp_path, precious):
    """A link in the place of a picture or of the manifest is replaced, and its target is not."""
    plots = Workspace(tmp_path / "w").plots
    plots.path.mkdir(parents=True)
    for name in ("picture.png", "manifest.json"):
        (plots.path / name).symlink_to(precious / "file")
    with plots.writing() as staging:
        (staging.path / "picture.png").write_text("new")
        staging.commit(Manifest(kind="plots", settings={}), results={}, seconds=0.0)
    assert not any(path.is_symlink() for path in plots.path.iterdir())
    assert (plots.path / "picture.png").read_text() == "new"


@pytest.mark.parametrize("kind", ["text", "directory", "hard link", "pipe", "dangling link"])
def test_foreign_lock_is_refused(tmp_path, kind):
    """A lock file that kdistill did not write is refused and left as it is."""
    artifact = Workspace(tmp_path / "w").teacher("teacher")
    lock = artifact.path.with_name(".teacher.lock")
    lock.parent.mkdir(parents=True)
    other = tmp_path / "other"
    makers = {
        "text": lambda: lock.write_text("precious"),
        "directory": lock.mkdir,
        "hard link": lambda: (other.write_text("process"), os.link(other, lock)),
        "pipe": lambda: os.mkfifo(lock),
        "dangling link": lambda: lock.symlink_to(other),
    }
    makers[kind]()
    with pytest.raises(KdistillError, match=r"w/teachers/\.teacher\.lock .*rm "), artifact.writing():
        pass
    assert os.path.lexists(lock)
    assert not other.exists() or other.read_text() == "process"


def test_old_artifact_is_set_aside_safely(tmp_path, monkeypatch, precious):
    """Where two names cannot be exchanged, only an older artifact in the place for the old one is removed."""
    monkeypatch.setattr("kdistill.workspace.files._swap", lambda *_: False)
    artifact = Workspace(tmp_path / "w").teacher("teacher")
    aside = artifact.path.with_name(".teacher.old")
    artifact.path.mkdir(parents=True)
    aside.symlink_to(precious)
    with pytest.raises(KdistillError, match=r"\.teacher\.old"), artifact.writing() as staging:
        workspace.exchange(staging.path, artifact.path)
    aside.unlink()
    aside.mkdir()
    (aside / "manifest.json").write_text(json.dumps({}))
    with artifact.writing() as staging:
        workspace.exchange(staging.path, artifact.path)
    assert os.listdir(artifact.path.parent) == ["teacher"]
