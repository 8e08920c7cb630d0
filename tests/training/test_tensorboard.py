"""Event files: what TensorBoard reads is what `history.csv` says, each point once, whatever happened on the way."""

from __future__ import annotations

import csv

import pytest
from helpers import QUICK, imports_of, stamps

from kdistill.backend import tf
from kdistill.training.tensorboard import TAGS

TEACHER, STUDENT = "teachers/teacher", "students/student"


def points(workspace, run):
    """All points of a run in the order written: tag, epoch and value."""
    found = []
    for file in sorted((workspace / "tensorboard" / run).iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            found += [(v.tag, event.step, float(tf.make_ndarray(v.tensor))) for v in event.summary.value]
    return found


def expected(workspace, run):
    """The same from `history.csv`; a teacher's training loss is of hard labels, so it stands there twice."""
    with (workspace / run / "history.csv").open() as stream:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
    assert set(rows[0]) <= {"epoch", *TAGS}
    rows = [{"hard_loss": row["train_loss"], **row} for row in rows]
    return [(TAGS[name], int(row["epoch"]), row[name]) for row in rows for name in row if name != "epoch"]


def check(workspace, run):
    found, wanted = (sorted(some) for some in (points(workspace, run), expected(workspace, run)))
    assert [point[:2] for point in found] == [point[:2] for point in wanted]
    assert [point[2] for point in found] == pytest.approx([point[2] for point in wanted], rel=1e-6)


def test_run_writes_both_networks(run, tmp_path):
    """Teacher and student are runs of one name each, with the charts that both have under one tag."""
    quick = ["--model", "mlp-30", "--epochs", "2", "--validation-fraction", "0.2"]
    assert run("run", *quick, "--tensorboard").code == 0
    workspace = tmp_path / "workspace"
    for network in (TEACHER, STUDENT):
        check(workspace, network)
    tags = [{tag for tag, _, _ in points(workspace, network)} for network in (TEACHER, STUDENT)]
    assert tags[1] == tags[0] | {"loss/train_soft"}
    assert {"loss/train", "loss/train_hard", "loss/validation", "accuracy/validation", "run/learning_rate"} <= tags[0]


def test_up_to_date_network_is_drawn_from_its_history(run, workspace):
    """The flag is no reason to train again, and changes no artifact; without it TensorFlow is not even imported."""
    before = stamps(workspace)
    for command, network in (["train-teacher", TEACHER], ["train-student", STUDENT]):
        for _ in range(2):
            assert "Up to date" in run(command, *QUICK, "--tensorboard").out
            check(workspace, network)
    assert stamps(workspace) == before
    assert run("verify").code == 0
    assert run("status").code == 0
    assert "tensorflow" not in imports_of("train-teacher", *QUICK, cwd=workspace.parent)[1]


@pytest.mark.parametrize("after", [3, 5])
def test_resumed_run_has_each_point_once(run, workspace, monkeypatch, after):
    """Stopped after an epoch, all of them are there at once; taken up again, none is there twice."""
    from kdistill.training import loop as training

    write = training.Checkpoint.write
    told = []

    def stop(self, progress, variables):
        write(self, progress, variables)
        told.append(len(points(workspace, TEACHER)) if (workspace / "tensorboard").exists() else 0)
        if progress.epoch == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Checkpoint, "write", stop)
        assert run("train-teacher", *QUICK, "--seed", "5", "--tensorboard").code == 130
    columns = len(expected(workspace, TEACHER)) // 5
    assert told == [epoch * columns for epoch in range(after)], "each epoch is there before the next is done"
    assert f"goes on after epoch {after}" in run("train-teacher", *QUICK, "--seed", "5", "--tensorboard").out
    check(workspace, TEACHER)
    assert "goes on after epoch 5" in run("train-teacher", *QUICK, "--seed", "5", "--epochs", "6", "--tensorboard").out
    check(workspace, TEACHER)
    run("train-teacher", *QUICK, "--seed", "6", "--epochs", "2", "--tensorboard")
    check(workspace, TEACHER)


def test_hard_label_student_has_no_soft_loss(run, workspace):
    """What is not there (NaN) is no point."""
    assert run("train-student", "--alpha", "1", *QUICK, "--tensorboard").code == 0
    check(workspace, STUDENT)
    assert not [point for point in points(workspace, STUDENT) if point[0] == "loss/train_soft"]


def test_tensorboard_itself_reads_it(run, workspace):
    """The runs that TensorBoard shows are `teachers/NAME` and `students/NAME`."""
    multiplexer = pytest.importorskip(
        "tensorboard.backend.event_processing.plugin_event_multiplexer", reason="needs the extra `tensorboard`"
    )
    run("train-student", *QUICK, "--tensorboard")
    board = multiplexer.EventMultiplexer().AddRunsFromDirectory(str(workspace)).Reload()
    assert list(board.Runs()) == [f"tensorboard/{STUDENT}"]
    assert [event.step for event in board.Tensors(f"tensorboard/{STUDENT}", "loss/train")] == [1, 2, 3, 4, 5]
