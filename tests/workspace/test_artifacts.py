"""Artifacts replace each other atomically, record their inputs, and are written by one process at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import mentions

from kdistill import workspace
from kdistill.errors import KdistillError
from kdistill.workspace import Input, Manifest, Workspace, threads

RESULTS = {
    "model": "cnn",
    "parameters": 3,
    "task": "classification",
    "summary": "1 of 2 test rows wrong",
    "test_errors": 1,
    "test_rows": 2,
    "held_out_rows": 2,
    "best_epoch": 3,
    "epochs_run": 3,
}
SETTINGS = {"epochs": 3, "model": "cnn", "precision": "float32"}
IDENTITY = Manifest(kind="teacher", settings=SETTINGS, inputs=(Input("dataset", "d", "sha256:1"),))


def put(artifact, text, identity=IDENTITY):
    with artifact.writing() as staging:
        (staging.path / "saved_model").write_text(text)
        (staging.path / "history.csv").write_text("")
        return staging.commit(identity, results=RESULTS, seconds=1.0)


@pytest.fixture
def artifact(tmp_path):
    return Workspace(tmp_path / "w").teacher("teacher")


def test_manifest_round_trip(artifact):
    """A manifest is read as it was written, with the digests of the outputs."""
    written = put(artifact, "one")
    assert artifact.manifest() == written
    outputs = ("history.csv", "saved_model")
    assert written.outputs == {name: workspace.digest(artifact.path / name) for name in outputs}
    assert artifact.out_of_date(IDENTITY) is None


def test_out_of_date_names_the_difference(artifact):
    """Changed settings, changed inputs and damaged outputs are named; a renamed input with equal contents is not."""
    assert artifact.out_of_date(IDENTITY)
    put(artifact, "one")
    other = Manifest(kind="teacher", settings=SETTINGS | {"epochs": 5}, inputs=(Input("dataset", "e", "sha256:2"),))
    assert mentions(artifact.out_of_date(other), "epochs", 3, 5, "dataset", "d", "e")
    renamed = Manifest(kind="teacher", settings=IDENTITY.settings, inputs=(Input("dataset", "moved", "sha256:1"),))
    assert artifact.out_of_date(renamed) is None
    (artifact.path / "saved_model").write_text("touched")
    changed = artifact.out_of_date(IDENTITY)
    (artifact.path / "saved_model").unlink()
    missing = artifact.out_of_date(IDENTITY)
    assert mentions(changed, "saved_model")
    assert mentions(missing, "saved_model")
    assert changed != missing


def test_a_new_setting_that_is_off_is_no_difference():
    """An artifact of a version without the setting stays up to date until the setting is on."""
    for value, expected in ((False, []), (None, []), (True, ["faster none -> True"])):
        newer = Manifest(kind="teacher", settings=SETTINGS | {"faster": value}, inputs=IDENTITY.inputs)
        assert IDENTITY.differences(newer) == expected
        assert newer.differences(IDENTITY) == ([f"faster {value} -> none"] if value is not None else [])


@pytest.mark.parametrize("swap", [True, False])
def test_new_artifact_replaces_the_old(artifact, monkeypatch, swap):
    """The new artifact replaces the old one, with and without the system call that exchanges two names."""
    if not swap:
        monkeypatch.setattr("kdistill.workspace.files._swap", lambda *_: False)
    put(artifact, "one")
    put(artifact, "two")
    assert (artifact.path / "saved_model").read_text() == "two"
    assert os.listdir(artifact.path.parent) == ["teacher"]


@pytest.mark.parametrize("error", [KdistillError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failure_leaves_the_old(artifact, error):
    """A failure leaves the old artifact, and removes the unfinished one."""
    put(artifact, "one")
    with pytest.raises(type(error)), artifact.writing() as staging:
        (staging.path / "file").write_text("two")
        raise error
    assert (artifact.path / "saved_model").read_text() == "one"
    assert os.listdir(artifact.path.parent) == ["teacher"]


def test_failure_leaves_no_empty_directories(artifact, tmp_path):
    """Directories that were created for a failed artifact are removed."""
    with pytest.raises(KdistillError), artifact.writing():
        raise KdistillError("no")
    assert os.listdir(tmp_path) == []


def test_interruption_keeps_the_file_to_resume_from(artifact):
    """An interrupted run leaves only the file that the next run resumes from."""
    with pytest.raises(KeyboardInterrupt), artifact.writing() as staging:
        (staging.path / "checkpoint.npz").write_text("half")
        (staging.path / "other").write_text("x")
        raise KeyboardInterrupt
    with artifact.writing() as staging:
        assert os.listdir(staging.path) == ["checkpoint.npz"]
    assert os.listdir(artifact.path.parent) == []


def test_full_disk_names_the_artifact(artifact):
    """An error of a full disk gets the path of the artifact; an error while reading does not."""
    for number, name in ((errno.ENOSPC, str(artifact.path)), (errno.EDQUOT, str(artifact.path)), (errno.EIO, None)):
        with pytest.raises(OSError, match="why") as caught, artifact.writing():
            raise OSError(number, "why")
        assert caught.value.filename == name


def test_second_writer_is_refused(artifact):
    """A second writer is refused with the process number of the first; other artifacts can be written."""
    code = (
        "import sys; from pathlib import Path; from kdistill.workspace import Workspace\n"
        f"with Workspace(Path({str(artifact.path.parent.parent)!r})).teacher('teacher').writing():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(KdistillError, match=rf"process {holder.pid}\b"), artifact.writing():
        pass
    put(Workspace(artifact.path.parent.parent).teacher("other"), "one")
    holder.kill()
    holder.wait()
    put(artifact, "one")
    assert sorted(os.listdir(artifact.path.parent)) == ["other", "teacher"]


def test_digest_covers_names_and_bytes(tmp_path):
    """Directories of equal bytes under other names, or in other places, have different digests."""
    seen = set()
    for names in (["a", "b"], ["a", "c"], ["a", "d/b"], ["b", "a"]):
        place = tmp_path / "".join(names).replace("/", "-")
        for number, name in enumerate(names):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(str(number))
        seen.add(workspace.digest(place))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 1}',
        "null",
        '{"format": 1, "kind": "teacher", "settings": {}, "inputs": {}, "results": {}}',
        '{"format": "x", "inputs": {}}',
        "\x00",
        "[" * 100_000,
    ],
)
def test_damaged_manifest_is_named(artifact, text):
    """A damaged manifest is refused by its path, with the command that writes it again."""
    put(artifact, "one")
    artifact.manifest_path.write_text(text)
    with pytest.raises(KdistillError, match=r"teachers/teacher/manifest\.json .*train-teacher .*--force"):
        artifact.require()
    assert "manifest" in artifact.out_of_date(IDENTITY)


def test_newer_manifest_is_refused(artifact):
    """A manifest of an unknown format version is refused by that version."""
    put(artifact, "one")
    text = artifact.manifest_path.read_text().replace('"format": 1', '"format": 7')
    artifact.manifest_path.write_text(text)
    with pytest.raises(KdistillError, match=r"\b7\b"):
        artifact.require()


def test_only_the_standard_library():
    """Workspace and settings import without any other package."""
    code = (
        "import sys; import kdistill.workspace, kdistill.settings\n"
        "print([m for m in ('numpy', 'h5py', 'tensorflow', 'typer', 'rich') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_workspace_lists_its_artifacts(tmp_path):
    """Artifacts are listed by name; locks and other files are not."""
    place = Workspace(tmp_path)
    assert place.artifacts() == []
    put(place.teacher("b"), "x")
    put(place.teacher("a"), "x")
    (tmp_path / "soft-targets").mkdir()
    for name in ("one.h5", ".one.h5.lock", "notes.txt"):
        Path(tmp_path / "soft-targets" / name).touch()
    assert [artifact.name for artifact in place.artifacts("teacher")] == ["a", "b"]
    assert [artifact.name for artifact in place.artifacts("soft targets")] == ["one"]


@pytest.mark.parametrize(("variable", "counted"), [("3", 3), ("0", 0), ("", 0), ("x", 0)])
def test_threads_are_those_tensorflow_uses(monkeypatch, made, variable, counted):
    """A manifest records the number of threads, since the bits of a network can depend on it."""
    assert Workspace(made).teacher("teacher").require().threads == threads()
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", variable)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert threads() == (counted or available)
