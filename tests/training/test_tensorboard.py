"""Event files: TensorBoard reads the numbers of `history.csv`, each point once, also after a run is resumed."""

from __future__ import annotations

import csv

import pytest
from helpers import QUICK, imports_of, stamps

from kdistill.backend import tf
from kdistill.training.tensorboard import tag

TEACHER, STUDENT = "teachers/teacher", "students/student"


def points(workspace, run):
    """Return all points of a run in the order in which they were written: tag, epoch and value."""
    values = []
    for file in sorted((workspace / "tensorboard" / run).iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            values += [(v.tag, event.step, float(tf.make_ndarray(v.tensor))) for v in event.summary.value]
    return values


def expected(workspace, run):
    """Return the same from `history.csv`. The training loss of a teacher is in two charts, since it is a hard loss."""
    with (workspace / run / "history.csv").open() as stream:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
    assert all(tag(name) for name in set(rows[0]) - {"epoch"})
    rows = [{"hard_loss": row["train_loss"], **row} for row in rows]
    return [(tag(name), int(row["epoch"]), row[name]) for row in rows for name in row if name != "epoch"]


def check(workspace, run):
    written, wanted = sorted(points(workspace, run)), sorted(expected(workspace, run))
    assert [point[:2] for point in written] == [point[:2] for point in wanted]
    assert [point[2] for point in written] == pytest.approx([point[2] for point in wanted], rel=1e-6)


@pytest.mark.slow
def test_run_writes_both_networks(run, tmp_path):
    """Teacher and student are a run each, and share the tags of their charts."""
    quick = ["--model", "mlp-30", "--epochs", "2", "--validation-fraction", "0.2"]
    assert run("run", *quick, "--tensorboard").code == 0
    workspace = tmp_path / "workspace"
    for network in (TEACHER, STUDENT):
        check(workspace, network)
    tags = [{tag for tag, _, _ in points(workspace, network)} for network in (TEACHER, STUDENT)]
    assert tags[1] == tags[0] | {"loss/train_soft"}
    assert {"loss/train", "loss/train_hard", "loss/validation", "accuracy/validation", "run/learning_rate"} <= tags[0]


@pytest.mark.slow
def test_event_files_of_an_up_to_date_network(run, workspace):
    """They are written from its history, without training; without the option, TensorFlow is not imported."""
    before = stamps(workspace)
    for command, network in (["train-teacher", TEACHER], ["train-student", STUDENT]):
        for _ in range(2):
            assert run(command, *QUICK, "--tensorboard").code == 0
            check(workspace, network)
    assert stamps(workspace) == before
    assert run("verify").code == 0
    assert run("status").code == 0
    assert "tensorflow" not in imports_of("train-teacher", *QUICK, cwd=workspace.parent)[1]


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 5])
def test_resumed_run_has_each_point_once(run, workspace, monkeypatch, after):
    """When a run stops, all its epochs are in the files; when it resumes, none is there twice."""
    from kdistill.training.checkpoint import Checkpoint

    write = Checkpoint.write
    counts = []

    def stop(self, progress, *others):
        write(self, progress, *others)
        counts.append(len(points(workspace, TEACHER)) if (workspace / "tensorboard").exists() else 0)
        if progress.epoch == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", stop)
        assert run("train-teacher", *QUICK, "--seed", "5", "--tensorboard").code == 130
    columns = len(expected(workspace, TEACHER)) // 5
    assert counts == [epoch * columns for epoch in range(after)], "each epoch is written before the next one"
    assert f"from epoch {after}" in run("train-teacher", *QUICK, "--seed", "5", "--tensorboard").out
    check(workspace, TEACHER)
    assert "from epoch 5" in run("train-teacher", *QUICK, "--seed", "5", "--epochs", "6", "--tensorboard").out
    check(workspace, TEACHER)
    run("train-teacher", *QUICK, "--seed", "6", "--epochs", "2", "--tensorboard")
    check(workspace, TEACHER)


@pytest.mark.slow
def test_hard_label_student_has_no_soft_loss(run, workspace):
    """A value that is missing (NaN) has no point."""
    assert run("train-student", "--alpha", "1", *QUICK, "--tensorboard").code == 0
    check(workspace, STUDENT)
    assert not [point for point in points(workspace, STUDENT) if point[0] == "loss/train_soft"]


def test_tensorboard_reads_the_files(run, workspace):
    """TensorBoard shows the runs `teachers/NAME` and `students/NAME`."""
    multiplexer = pytest.importorskip(
        "tensorboard.backend.event_processing.plugin_event_multiplexer", reason="needs the extra `tensorboard`"
    )
    run("train-student", *QUICK, "--tensorboard")
    board = multiplexer.EventMultiplexer().AddRunsFromDirectory(str(workspace)).Reload()
    assert list(board.Runs()) == [f"tensorboard/{STUDENT}"]
    assert [event.step for event in board.Tensors(f"tensorboard/{STUDENT}", "loss/train")] == [1, 2, 3, 4, 5]
