"""Artifacts take each other's place whole, say what they came from, and are written by one process at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdistill import workspace
from kdistill.errors import KdistillError
from kdistill.workspace import Input, Manifest, Workspace, threads

RESULTS = {
    "model": "cnn",
    "parameters": 3,
    "test_errors": 1,
    "test_rows": 2,
    "held_out_rows": 2,
    "best_epoch": 3,
    "epochs_run": 3,
}
SETTINGS = {"epochs": 3, "model": "cnn", "precision": "float32"}
IDENTITY = Manifest(kind="teacher", settings=SETTINGS, inputs={"dataset": Input("d", "sha256:1")})


def put(artifact, text, identity=IDENTITY):
    with artifact.writing() as staging:
        (staging.path / "saved_model").write_text(text)
        (staging.path / "history.csv").write_text("")
        return staging.commit(identity, results=RESULTS, seconds=1.0)


@pytest.fixture
def artifact(tmp_path):
    return Workspace(tmp_path / "w").teacher("teacher")


def test_manifest_round_trip(artifact):
    """What is written is what is read, and it names the digests of what was made."""
    written = put(artifact, "one")
    assert artifact.manifest() == written
    outputs = ("history.csv", "saved_model")
    assert written.outputs == {name: workspace.digest(artifact.path / name) for name in outputs}
    assert artifact.out_of_date(IDENTITY) is None


def test_out_of_date_names_what_differs(artifact):
    assert artifact.out_of_date(IDENTITY) == "not there yet"
    put(artifact, "one")
    other = Manifest(kind="teacher", settings=SETTINGS | {"epochs": 5}, inputs={"dataset": Input("e", "sha256:2")})
    assert artifact.out_of_date(other) == "epochs 3 -> 5; dataset d -> e"
    renamed = Manifest(kind="teacher", settings=IDENTITY.settings, inputs={"dataset": Input("moved", "sha256:1")})
    assert artifact.out_of_date(renamed) is None
    (artifact.path / "saved_model").write_text("touched")
    assert "saved_model is not what was written" in artifact.out_of_date(IDENTITY)
    (artifact.path / "saved_model").unlink()
    assert "saved_model is missing" in artifact.out_of_date(IDENTITY)


@pytest.mark.parametrize("swap", [True, False])
def test_new_takes_the_place_of_old(artifact, monkeypatch, swap):
    """With and without the system call that exchanges two names, the new artifact stands and nothing else is left."""
    if not swap:
        monkeypatch.setattr(workspace, "_swap", lambda *_: False)
    put(artifact, "one")
    put(artifact, "two")
    assert (artifact.path / "saved_model").read_text() == "two"
    assert os.listdir(artifact.path.parent) == ["teacher"]


@pytest.mark.parametrize("error", [KdistillError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failure_leaves_the_old(artifact, error):
    """Whatever stops the work, what stood before stands, and what was half made is gone."""
    put(artifact, "one")
    with pytest.raises(type(error)), artifact.writing() as staging:
        (staging.path / "file").write_text("two")
        raise error
    assert (artifact.path / "saved_model").read_text() == "one"
    assert os.listdir(artifact.path.parent) == ["teacher"]


def test_failure_leaves_no_empty_directories(artifact, tmp_path):
    with pytest.raises(KdistillError), artifact.writing():
        raise KdistillError("no")
    assert os.listdir(tmp_path) == []


def test_interruption_keeps_what_is_to_be_taken_up(artifact):
    """A run that is stopped leaves the one file by which it goes on, and the next finds it."""
    with pytest.raises(KeyboardInterrupt), artifact.writing(keep="checkpoint") as staging:
        (staging.path / "checkpoint").write_text("half")
        (staging.path / "other").write_text("x")
        raise KeyboardInterrupt
    with artifact.writing(keep="checkpoint") as staging:
        assert os.listdir(staging.path) == ["checkpoint"]
    assert os.listdir(artifact.path.parent) == []


def test_full_disk_names_the_artifact(artifact):
    """NumPy and HDF5 raise errors without a file name; those of reading are not the artifact's."""
    for number, name in ((errno.ENOSPC, str(artifact.path)), (errno.EDQUOT, str(artifact.path)), (errno.EIO, None)):
        with pytest.raises(OSError, match="why") as caught, artifact.writing():
            raise OSError(number, "why")
        assert caught.value.filename == name


def test_second_writer_is_refused(artifact):
    """While one process writes, another is told which, at once; other artifacts can be written."""
    code = (
        "import sys; from pathlib import Path; from kdistill.workspace import Workspace\n"
        f"with Workspace(Path({str(artifact.path.parent.parent)!r})).teacher('teacher').writing():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(KdistillError, match=rf"process {holder.pid} since"), artifact.writing():
        pass
    put(Workspace(artifact.path.parent.parent).teacher("other"), "one")
    holder.kill()
    holder.wait()
    put(artifact, "one")
    assert sorted(os.listdir(artifact.path.parent)) == ["other", "teacher"]


def test_digest_covers_names_and_bytes(tmp_path):
    """Two directories of equal bytes under other names differ; so do files moved into another directory."""
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
def test_spoiled_manifest_is_named(artifact, text):
    put(artifact, "one")
    artifact.manifest_path.write_text(text)
    with pytest.raises(KdistillError, match=r"manifest\.json is not a manifest .*train-teacher .*--force"):
        artifact.require()
    assert "not a manifest" in artifact.out_of_date(IDENTITY)


def test_newer_manifest_is_refused_by_name(artifact):
    put(artifact, "one")
    text = artifact.manifest_path.read_text().replace('"format": 1', '"format": 7')
    artifact.manifest_path.write_text(text)
    with pytest.raises(KdistillError, match="format 7"):
        artifact.require()


def test_nothing_but_the_standard_library():
    """The room can be used, and answers, without any other package."""
    code = (
        "import sys; import kdistill.workspace, kdistill.settings, kdistill.history\n"
        "print([m for m in ('numpy', 'h5py', 'tensorflow', 'typer', 'rich') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_workspace_lists_what_it_holds(tmp_path):
    place = Workspace(tmp_path)
    assert place.teachers() == place.students() == place.soft_target_files() == []
    put(place.teacher("b"), "x")
    put(place.teacher("a"), "x")
    (tmp_path / "soft-targets").mkdir()
    for name in ("one.h5", ".one.h5.lock", "notes.txt"):
        Path(tmp_path / "soft-targets" / name).touch()
    assert [artifact.name for artifact in place.teachers()] == ["a", "b"]
    assert [artifact.name for artifact in place.soft_target_files()] == ["one"]


@pytest.mark.parametrize(("given", "counted"), [("3", 3), ("0", 0), ("", 0), ("x", 0)])
def test_threads_are_those_tensorflow_uses(monkeypatch, made, given, counted):
    """A manifest records them, as the bits of a network can depend on them."""
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", given)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert threads() == (counted or available)
    assert Workspace(made).teacher("teacher").require().threads == available
