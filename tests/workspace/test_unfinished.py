"""Interrupted work is shown, resumed by the command that is shown, and not thrown away without being asked."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers import QUICK, Stops, imports_of

import kdistill
from kdistill.workspace import Workspace, unfinished
from kdistill.workspace.resume_log import BlockLog
from kdistill.workspace.staleness import manifest_of

SEEDED = ["train-teacher", *QUICK, "--seed", "7"]


def stop(artifact, *, rows=3, seconds=100.0, **changed):
    """Leave what a run leaves that was stopped after some epochs of equal length."""
    identity = manifest_of(artifact)
    identity = replace(identity, settings={**identity.settings, **changed}, outputs={}, results={})
    head = {"rows": [{"seconds": seconds}] * rows, "best_epoch": 0, "identity": identity.to_json()}
    artifact.partial.mkdir()
    np.savez(artifact.partial / "checkpoint.npz", head=np.frombuffer(json.dumps(head).encode(), np.uint8))
    return identity


def stop_log(artifact, *, rows=300, seconds=100.0, **changed):
    """Leave what `soften` leaves that was stopped after some rows."""
    identity = manifest_of(artifact)
    identity = replace(identity, settings={**identity.settings, **changed}, outputs={}, results={})
    artifact.partial.mkdir()
    log = BlockLog(artifact.partial / "blocks.log", identity, {"row_keys": ((16,), "u1")}, 1437)
    for _ in range(3):
        log._since -= seconds / 3
        log.append({"row_keys": np.zeros((rows // 3, 16), np.uint8)})
    log.close()


@pytest.fixture
def place(workspace, monkeypatch):
    monkeypatch.chdir(workspace.parent)
    return Workspace("workspace")


def shown(run, name):
    """What `status` says of interrupted work, and the next command."""
    found = json.loads(run("status", "--json").out)
    return next(one["interrupted"] for one in found["artifacts"] if one["name"] == name), found["next"]


def test_status_resumes_what_was_stopped(run, place):
    """A real run that is stopped: `status` says how far it came, and its command goes on from there."""
    settings = kdistill.TrainTeacher(
        model="mlp-30", name="big", training=kdistill.Training(epochs=4, learning_rate=0.003, seed=3)
    )
    with pytest.raises(KeyboardInterrupt):
        kdistill.train_teacher(place, settings, reporter=Stops(2))
    found, following = shown(run, "big")
    assert (found["done"], found["total"], found["unit"], found["writer"]) == (2, 4, "epochs", None)
    assert 0 < found["seconds"] < 60
    assert found["command"] == following
    assert following == "kdistill train-teacher --name big --model mlp-30 --epochs 4 --learning-rate 0.003 --seed 3"
    assert f"interrupted: 2 of 4 epochs, {found['seconds']:.0f} s of work; to resume: {following}" in run("status").out
    outcome = run(*following.split()[1:])
    assert "from epoch 2" in outcome.out
    assert "interrupted" not in run("status").out


def test_status_reads_checkpoints_without_tensorflow(place):
    stop(place.teacher("teacher"), seed=7)
    stop_log(place.soft_targets("soft-targets"), temperature=5.0)
    code, imported = imports_of("status", cwd=place.root.absolute().parent)
    assert code == 0
    assert not {"tensorflow", "keras", "matplotlib"} & set(imported)


def test_status_shows_a_stopped_log(run, place):
    """Rows of rows, and the seconds that are recorded in the log."""
    stop_log(place.soft_targets("soft-targets"), temperature=5.0)
    found, following = shown(run, "soft-targets")
    assert (found["done"], found["total"], found["unit"]) == (300, 1437, "rows")
    assert 100 <= found["seconds"] < 110
    assert following == "kdistill soften --temperature 5"


def test_log_that_was_cut_short_is_counted_to_its_last_whole_record(place):
    artifact = place.soft_targets("soft-targets")
    stop_log(artifact, temperature=5.0)
    log = artifact.partial / "blocks.log"
    os.truncate(log, log.stat().st_size - 1)
    assert unfinished.find(artifact).done == 200


COMMANDS = {
    "teacher": (["train-teacher", *QUICK, "--epochs", "1"], SEEDED),
    "student": (
        ["train-student", *QUICK, "--epochs", "1"],
        "train-student --model mlp-30 --alpha 0.1 --temperature 20 --epochs 5 --learning-rate 0.003 --seed 7".split(),
    ),
    "soft-targets": (["soften", "--temperature", "2"], ["soften", "--temperature", "5"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_work_is_not_discarded_without_force(run, place, name):
    """Another command than the one that was stopped is refused, with the one that resumes it; nothing is lost."""
    artifact = {"teacher": place.teacher, "student": place.student, "soft-targets": place.soft_targets}[name](name)
    (stop_log if name == "soft-targets" else stop)(
        artifact, **({"temperature": 5.0} if name[1] == "o" else {"seed": 7})
    )
    before = {item.name: item.read_bytes() for item in artifact.partial.iterdir()}
    other, resuming = COMMANDS[name]
    outcome = run(*other)
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
    assert "--force" in outcome.err
    assert " min of work" in outcome.err
    assert {item.name: item.read_bytes() for item in artifact.partial.iterdir()} == before
    words = outcome.err.rpartition(": kdistill ")[2].split()
    assert set(words) >= set(resuming) - {"--batch-size", "32"}
    outcome = run(*other, "--force")
    assert outcome.code == 0, outcome.err
    assert not artifact.partial.exists()


@pytest.mark.parametrize("seconds", [19.9, 20.1])
def test_a_minute_is_worth_keeping(run, place, seconds):
    stop(place.teacher("teacher"), seconds=seconds, seed=7)
    outcome = run("train-teacher", *QUICK, "--epochs", "1")
    assert outcome.code == (seconds > 20)
    assert ("Starting over" in outcome.out) == (seconds < 20)


def test_epochs_that_stand_are_no_interrupted_work(place):
    """Of a run that adds epochs to those of a finished one, only the added ones would be lost."""
    teacher = place.teacher("teacher")
    stop(teacher, rows=6, seconds=50.0, epochs=100)
    left = unfinished.find(teacher)
    assert (left.done, left.total, left.seconds) == (6, 100, 50.0)


def test_interrupted_force_is_tidied_up(run, place):
    """A killed `--force` of what stands leaves nothing once the plain command has said that it is up to date."""
    stop(place.teacher("teacher"))
    stop_log(place.soft_targets("soft-targets"))
    assert "interrupted" not in run("status").out
    assert "up to date" in run("train-teacher", *QUICK).out
    assert "up to date" in run("soften").out
    assert not place.teacher("teacher").partial.exists()
    assert not place.soft_targets("soft-targets").partial.exists()


@pytest.mark.parametrize("left", ["other work", "unreadable", "a live writer"])
def test_tidying_leaves_what_may_be_wanted(run, place, left):
    """Work on something else stays beside what is up to date, and so does what a newer kdistill may have left."""
    teacher = place.teacher("teacher")
    if left == "a live writer":
        with teacher.writing(keep="checkpoint.npz"):
            assert "up to date" in run("train-teacher", *QUICK).out
            assert teacher.partial.exists()
        return
    stop(teacher, seed=7)
    if left == "unreadable":
        (teacher.partial / "checkpoint.npz").write_bytes(b"half")
    before = (teacher.partial / "checkpoint.npz").read_bytes()
    assert "up to date" in run("train-teacher", *QUICK).out
    assert (teacher.partial / "checkpoint.npz").read_bytes() == before


@pytest.mark.parametrize("left", ["nothing", "parts", "what was replaced"])
def test_tidying_removes_what_nothing_resumes(run, place, left):
    """What a run left that was killed before its first epoch, or after its artifact had taken its place."""
    teacher = place.teacher("teacher")
    teacher.partial.mkdir()
    if left == "parts":
        (teacher.partial / "saved_model").mkdir()
    if left == "what was replaced":
        shutil.rmtree(teacher.partial)
        stop(teacher, seed=5)
        manifest = teacher.partial / "manifest.json"
        manifest.write_text("{}")
        os.utime(manifest, ns=(0, teacher.manifest_path.stat().st_mtime_ns))
    assert "interrupted" not in run("status").out
    assert "up to date" in run("train-teacher", *QUICK).out
    assert sorted(os.listdir(teacher.path.parent)) == ["teacher"]


def test_finished_work_that_was_not_put_in_its_place_is_kept(run, place):
    """A run killed between its manifest and its place: the plain command of what stands leaves it to be resumed."""
    teacher = place.teacher("teacher")
    stop(teacher, rows=5, seed=7)
    (teacher.partial / "manifest.json").write_text("{}")
    found, following = shown(run, "teacher")
    assert found["done"] == 5
    assert following.endswith("--seed 7")
    assert "up to date" in run("train-teacher", *QUICK).out
    assert (teacher.partial / "checkpoint.npz").exists()


def test_running_work_is_not_called_interrupted(run, place):
    """Who is at it is named, and the next command is not the same again."""
    teacher = place.teacher("teacher")
    stop(teacher, seed=7)
    with teacher.writing(keep="checkpoint.npz"):
        found, following = shown(run, "teacher")
        assert f"process {os.getpid()} since" in found["writer"]
        assert following == "kdistill evaluate"
        assert f"being written by process {os.getpid()}" in run("status").out


def test_changed_inputs_are_an_obstacle(run, place):
    """Work on data that has changed since can't be resumed: `status` says why, and names another command."""
    soft = place.soft_targets("soft-targets")
    stop_log(soft, temperature=5.0)
    manifest = place.teacher("teacher").manifest_path
    written = json.loads(manifest.read_text())
    written["outputs"]["saved_model"] = "sha256:0"
    manifest.write_text(json.dumps(written))
    found, following = shown(run, "soft-targets")
    assert "has been made anew" in found["obstacles"][0]
    assert "--temperature 5" not in following
    assert "can't be resumed" in run("status").out
    outcome = run(
        "soften", "--teacher", "workspace/teachers/teacher/saved_model", "--dataset", "digits", "--dtype", "float16"
    )
    assert outcome.code == 1
    assert "--force" in outcome.err
    assert "kdistill soften" not in outcome.err


def test_remaking_a_damaged_artifact_is_work_too(run, place):
    """Of an artifact that is damaged, the same work is not done: `status` shows it, and another command is refused."""
    teacher = place.teacher("teacher")
    (teacher.path / "model.keras").unlink()
    stop(teacher)
    assert shown(run, "teacher")[1] == "kdistill train-teacher --model mlp-30 --epochs 5 --learning-rate 0.003"
    assert run("train-teacher", *QUICK, "--epochs", "1").code == 1
    assert (teacher.partial / "checkpoint.npz").exists()


def test_a_stopped_sweep_is_resumed_as_a_whole(run, place, monkeypatch):
    """`status` shows how many students of a stopped sweep are done, and the command that goes on with the others."""
    from kdistill.stages import sweep

    made = sweep._Work.made

    def stopped(self, one, **how):
        if one.settings.training.seed == 1:
            stop(place.student("student"), seed=1)
            one.artifact.path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(place.student("student").partial, one.artifact.partial)
            raise KeyboardInterrupt
        return made(self, one, **how)

    monkeypatch.setattr(sweep._Work, "made", stopped)
    how = ["--model", "mlp-30", "--epochs", "1", "--temperature", "2", "--seeds", "0,1", "--name", "mine"]
    assert run("sweep", *how).code == 130
    found, following = shown(run, "mine")
    assert (found["done"], found["total"], found["unit"]) == (1, 4, "students")
    assert following == "kdistill sweep --name mine --model mlp-30 --temperature 2 --epochs 1 --seeds 0,1"
    listed = [one["name"] for one in json.loads(run("status", "--json").out)["artifacts"]]
    assert listed.count("mine") == 1
    assert not [name for name in listed if "seed" in name]
    outcome = run("sweep", *how)
    assert outcome.code == 1
    assert "mlp-30-hard-seed1" in outcome.err
    assert "--force" in outcome.err
