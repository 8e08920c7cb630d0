"""Interrupted work: `status` shows it with the command that resumes it, and only `--force` discards it."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers import QUICK, InterruptAfter, imports_of, mentions

import kdistill
from kdistill.workspace import Workspace, unfinished
from kdistill.workspace.resume_log import BlockLog


def stop(artifact, *, rows=3, seconds=100.0, **changed):
    """Leave the checkpoint of a run that was interrupted after some epochs of equal length."""
    identity = artifact.manifest()
    identity = replace(identity, settings={**identity.settings, **changed}, outputs={}, results={})
    head = {"rows": [{"seconds": seconds}] * rows, "best_epoch": 0, "identity": identity.to_json()}
    artifact.partial.mkdir()
    np.savez(artifact.partial / "checkpoint.npz", head=np.frombuffer(json.dumps(head).encode(), np.uint8))
    return identity


def stop_log(artifact, *, rows=300, seconds=100.0, **changed):
    """Leave the log of a `soften` that was interrupted after some rows."""
    identity = artifact.manifest()
    identity = replace(identity, settings={**identity.settings, **changed}, outputs={}, results={})
    artifact.partial.mkdir()
    log = BlockLog(artifact.partial / "blocks.log", identity, {"row_keys": ((16,), "u1")}, 1437)
    for _ in range(3):
        log._last_append -= seconds / 3
        log.append({"row_keys": np.zeros((rows // 3, 16), np.uint8)})
    log.close()


@pytest.fixture
def place(workspace, monkeypatch):
    monkeypatch.chdir(workspace.parent)
    return Workspace("workspace")


def shown(run, name):
    """Return what `status` reports about the interrupted work on an artifact, and the next command."""
    status = json.loads(run("status", "--json").out)
    return next(each["interrupted"] for each in status["artifacts"] if each["name"] == name), status["next"]


def interrupted(run):
    """Return the names of the artifacts with interrupted work."""
    return [each["name"] for each in json.loads(run("status", "--json").out)["artifacts"] if each["interrupted"]]


def words(command):
    """Return the words of a command, without their order."""
    return set(command.split())


@pytest.mark.slow
def test_status_shows_how_to_resume(run, place):
    """After Ctrl-C, `status` shows the finished epochs, and its command resumes from there."""
    settings = kdistill.TrainTeacher(
        model="mlp-30", name="big", training=kdistill.Training(epochs=4, learning_rate=0.003, seed=3, xla="off")
    )
    with pytest.raises(KeyboardInterrupt):
        kdistill.train_teacher(place, settings, reporter=InterruptAfter(2))
    work, command = shown(run, "big")
    assert (work["done"], work["total"], work["unit"], work["writer"]) == (2, 4, "epochs", None)
    assert work["seconds"] > 0
    assert work["command"] == command
    options = "--name big --model mlp-30 --epochs 4 --learning-rate 0.003 --seed 3 --xla off"
    assert words(command) == words(f"kdistill train-teacher {options}")
    assert mentions(run("status").out, 2, 4, command)
    outcome = run(*command.split()[1:])
    assert re.findall(r"^epoch (\d)/4", outcome.out, re.MULTILINE) == ["3", "4"]
    assert interrupted(run) == []


def test_status_reads_checkpoints_without_tensorflow(place):
    """`status` shows interrupted work without importing TensorFlow."""
    stop(place.teacher("teacher"), seed=7)
    stop_log(place.soft_targets("soft-targets"), temperature=5.0)
    code, imported = imports_of("status", cwd=place.root.absolute().parent)
    assert code == 0
    assert not {"tensorflow", "keras", "matplotlib"} & set(imported)


def test_status_shows_an_interrupted_soften(run, place):
    """`status` counts the rows in the log of `soften`, and adds up the recorded seconds."""
    stop_log(place.soft_targets("soft-targets"), temperature=5.0)
    work, command = shown(run, "soft-targets")
    assert (work["done"], work["total"], work["unit"]) == (300, 1437, "rows")
    assert work["seconds"] >= 100
    assert command == "kdistill soften --temperature 5"


def test_truncated_log_is_read_to_its_last_whole_record(place):
    """A record that was cut short is not counted."""
    artifact = place.soft_targets("soft-targets")
    stop_log(artifact, temperature=5.0)
    log = artifact.partial / "blocks.log"
    os.truncate(log, log.stat().st_size - 1)
    assert unfinished.find(artifact).done == 200


COMMANDS = {  # other work on each artifact, and the command that resumes the interrupted work
    "teacher": (["train-teacher", *QUICK, "--epochs", "1"], ["train-teacher", *QUICK, "--seed", "7"]),
    "student": (["train-student", *QUICK, "--epochs", "1"], ["train-student", *QUICK, "--seed", "7"]),
    "soft-targets": (["soften", "--temperature", "2"], ["soften", "--temperature", "5"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_work_is_not_discarded_without_force(run, place, name):
    """A command that would discard a minute of work is refused, with the command that resumes the work."""
    artifact = {"teacher": place.teacher, "student": place.student, "soft-targets": place.soft_targets}[name](name)
    (stop_log if name == "soft-targets" else stop)(
        artifact, **({"temperature": 5.0} if name[1] == "o" else {"seed": 7})
    )
    before = {item.name: item.read_bytes() for item in artifact.partial.iterdir()}
    other, resuming = COMMANDS[name]
    outcome = run(*other)
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
    assert "--force" in outcome.err
    assert {item.name: item.read_bytes() for item in artifact.partial.iterdir()} == before
    assert words(outcome.err.rpartition("kdistill ")[2]) >= set(resuming) - {"--batch-size", "32"}
    outcome = run(*other, "--force")
    assert outcome.code == 0, outcome.err
    assert not artifact.partial.exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [19.9, 20.1])
def test_a_minute_of_work_is_kept(run, place, seconds):
    """Work of three epochs is discarded without `--force` if it took less than a minute."""
    stop(place.teacher("teacher"), seconds=seconds, seed=7)
    outcome = run("train-teacher", *QUICK, "--epochs", "1")
    assert outcome.code == (seconds > 20)
    assert place.teacher("teacher").partial.exists() == (seconds > 20)


def test_epochs_of_the_finished_run_are_not_counted(place):
    """If a run adds epochs to a finished one, only the seconds of the added epochs would be lost."""
    teacher = place.teacher("teacher")
    stop(teacher, rows=6, seconds=50.0, epochs=100)
    left = unfinished.find(teacher)
    assert (left.done, left.total, left.seconds) == (6, 100, 50.0)


def test_leftovers_of_a_killed_force_are_removed(run, place):
    """Work that would give the artifact that exists is removed once a command finds the artifact up to date."""
    stop(place.teacher("teacher"))
    stop_log(place.soft_targets("soft-targets"))
    assert interrupted(run) == []
    assert run("train-teacher", *QUICK).up_to_date
    assert run("soften").up_to_date
    assert not place.teacher("teacher").partial.exists()
    assert not place.soft_targets("soft-targets").partial.exists()


@pytest.mark.parametrize("left", ["other work", "unreadable", "a live writer"])
def test_other_work_is_kept_beside_an_artifact(run, place, left):
    """A command that finds its artifact up to date keeps work on something else, and files that it cannot read."""
    teacher = place.teacher("teacher")
    if left == "a live writer":
        with teacher.writing():
            assert run("train-teacher", *QUICK).up_to_date
            assert teacher.partial.exists()
        return
    stop(teacher, seed=7)
    if left == "unreadable":
        (teacher.partial / "checkpoint.npz").write_bytes(b"half")
    before = (teacher.partial / "checkpoint.npz").read_bytes()
    assert run("train-teacher", *QUICK).up_to_date
    assert (teacher.partial / "checkpoint.npz").read_bytes() == before


@pytest.mark.parametrize("left", ["nothing", "parts", "the old artifact"])
def test_leftovers_without_a_checkpoint_are_removed(run, place, left):
    """Leftovers of a run that was killed before its first epoch, or after it replaced its artifact, are removed."""
    teacher = place.teacher("teacher")
    teacher.partial.mkdir()
    if left == "parts":
        (teacher.partial / "saved_model").mkdir()
    if left == "the old artifact":
        shutil.rmtree(teacher.partial)
        stop(teacher, seed=5)
        manifest = teacher.partial / "manifest.json"
        manifest.write_text("{}")
        os.utime(manifest, ns=(0, teacher.manifest_path.stat().st_mtime_ns))
    assert interrupted(run) == []
    assert run("train-teacher", *QUICK).up_to_date
    assert sorted(os.listdir(teacher.path.parent)) == ["teacher"]


def test_finished_work_that_did_not_replace_its_artifact_is_kept(run, place):
    """Work of a run that was killed just before it replaced the artifact can still be resumed."""
    teacher = place.teacher("teacher")
    stop(teacher, rows=5, seed=7)
    (teacher.partial / "manifest.json").write_text("{}")
    work, command = shown(run, "teacher")
    assert work["done"] == 5
    assert mentions(command, "--seed 7")
    assert run("train-teacher", *QUICK).up_to_date
    assert (teacher.partial / "checkpoint.npz").exists()


def test_running_work_is_not_called_interrupted(run, place):
    """`status` names the process that writes, and its next command is another one."""
    teacher = place.teacher("teacher")
    stop(teacher, seed=7)
    with teacher.writing():
        work, command = shown(run, "teacher")
        assert mentions(work["writer"], os.getpid())
        assert command == "kdistill report"
        assert mentions(run("status").out, os.getpid())


def test_changed_inputs_are_an_obstacle(run, place):
    """Work on inputs that have changed cannot be resumed: `status` gives the reason, and another command."""
    soft = place.soft_targets("soft-targets")
    stop_log(soft, temperature=5.0)
    manifest = place.teacher("teacher").manifest_path
    written = json.loads(manifest.read_text())
    written["outputs"]["saved_model"] = "sha256:0"
    manifest.write_text(json.dumps(written))
    work, command = shown(run, "soft-targets")
    (obstacle,) = work["obstacles"]
    assert mentions(obstacle, "teacher 'teacher'")
    assert "--temperature 5" not in command
    assert obstacle in run("status").out
    outcome = run(
        "soften", "--teacher", "workspace/teachers/teacher/saved_model", "--dataset", "digits", "--dtype", "float16"
    )
    assert outcome.code == 1
    assert "--force" in outcome.err
    assert "kdistill soften" not in outcome.err


def test_work_on_a_damaged_artifact_is_kept(run, place):
    """Work that would replace a damaged artifact is shown by `status`, and other work is refused."""
    teacher = place.teacher("teacher")
    (teacher.path / "model.keras").unlink()
    stop(teacher)
    command = "kdistill train-teacher --model mlp-30 --epochs 5 --learning-rate 0.003 --xla off"
    assert words(shown(run, "teacher")[1]) == words(command)
    assert run("train-teacher", *QUICK, "--epochs", "1").code == 1
    assert (teacher.partial / "checkpoint.npz").exists()


@pytest.mark.slow
def test_interrupted_sweep_is_resumed(run, place, monkeypatch):
    """`status` counts the finished students of an interrupted sweep, and shows the command that resumes it."""
    from kdistill.stages.sweep_training import SweepTraining

    train = SweepTraining._train_here

    def stopped(self, job):
        artifact = self.plan.student(*job).artifact
        if job[1] == 1:
            stop(place.student("student"), seed=1)
            artifact.path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(place.student("student").partial, artifact.partial)
            raise KeyboardInterrupt
        return train(self, job)

    monkeypatch.setattr(SweepTraining, "_train_here", stopped)
    how = "--model mlp-30 --epochs 1 --temperature 2 --seeds 0,1 --name mine --xla off".split()
    assert run("sweep", *how).code == 130
    work, command = shown(run, "mine")
    assert (work["done"], work["total"], work["unit"]) == (1, 4, "students")
    assert words(command) == words(f"kdistill sweep {' '.join(how)}")
    listed = [each["name"] for each in json.loads(run("status", "--json").out)["artifacts"]]
    assert listed.count("mine") == 1
    assert not [name for name in listed if "seed" in name]
    outcome = run("sweep", *how)
    assert outcome.code == 1
    assert mentions(outcome.err, "mlp-30-hard-seed1", "--force")
