"""Rows on their way to a network: every row once an epoch, in an order of seed and epoch alone, in bounded memory."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest

from kdistill.data.keys import row_keys
from kdistill.data.readers.npz import Npz
from kdistill.data.rows import ArrayRows, Concat, Subset
from kdistill.errors import KdistillError
from kdistill.soft_targets.storage import Logits, LogitStorage
from kdistill.training.feed import Examples, Feed

ROWS = 1003


def examples(kind, tmp_path):
    """Rows whose inputs, labels and logits all say which row they are."""
    inputs = np.arange(ROWS, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    rows = ArrayRows(inputs, "some")
    if kind == "stream":
        np.savez(tmp_path / "some.npz", x_train=inputs, y_train=np.zeros(ROWS, int))
        rows = Npz(str(tmp_path / "some.npz")).contents().train.inputs
    if kind == "chosen":
        mask = np.zeros(3 * ROWS, bool)
        mask[::3] = True
        rows = Subset(ArrayRows(np.repeat(inputs, 3, axis=0), "some"), mask)
    if kind == "chained":
        rows = Concat([ArrayRows(inputs[:700], "a"), ArrayRows(inputs[700:], "b")])
    return Examples(rows, np.arange(ROWS), Logits(LogitStorage(3, 1.0), inputs[:, :3] * 2))


@pytest.mark.parametrize("kind", ["array", "stream", "chosen", "chained"])
@pytest.mark.parametrize("memory", [1 << 30, 16_000, 100])
def test_every_row_once_an_epoch(tmp_path, kind, memory):
    """Inputs, labels and logits stay together; whole batches but for an epoch's last; another epoch, another order."""
    feed = Feed(examples(kind, tmp_path), 8, memory)
    assert feed.held == (memory == 1 << 30)
    orders = []
    for seed in (1, 1, 2):
        seen, sizes = [], []
        for (inputs, labels, (said,), _), order in feed.shuffled(np.random.default_rng(seed), 1):
            np.testing.assert_array_equal(inputs.numpy()[:, 0], labels.numpy())
            np.testing.assert_array_equal(said.numpy()[:, 0], 2 * labels.numpy())
            seen.append(labels.numpy()[order])
            sizes.append(len(order))
        assert all(size % 8 == 0 for size in sizes[:-1])
        assert len(sizes) == 1 or max(sizes) * 36 <= max(memory, 8 * 8 * 36)
        orders.append(np.concatenate(seen))
        np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(ROWS))
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()
    in_order = np.concatenate([buffer.labels.numpy() for buffer in feed.in_order()])
    np.testing.assert_array_equal(in_order, np.arange(ROWS))


def test_streamed_rows_are_mixed(tmp_path):
    """A buffer holds rows from all over the data, where they can be read from any place."""
    feed = Feed(examples("array", tmp_path), 8, 18_000)
    assert not feed.held
    for buffer, _ in list(feed.shuffled(np.random.default_rng(0), 1))[:-1]:
        assert buffer.labels.numpy().std() > 150


@pytest.mark.parametrize("memory", [1 << 30, 3000])
@pytest.mark.parametrize("top_k", [None, 2])
def test_views_are_what_the_teacher_saw(run, tmp_path, digits, memory, top_k):
    """In each epoch a student's inputs, made here, are those that its logits were given for: the teacher says so.

    Rows of the same label are trained on in another order than the file's, in every epoch another view.
    """
    from kdistill.networks.loading import load
    from kdistill.soft_targets import AlignedSoftTargets, SoftTargets
    from kdistill.workspace import Workspace

    form = ["--top-k", top_k] if top_k else []
    for command in (
        ["train-teacher", "--model", "mlp-30", "--epochs", "1"],
        ["soften", "--augment", "shift:2,flip", "--views", "3", "--seed", "4", *form, "--temperature", "2"],
    ):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
    assert "softens 3 views (shift:2,flip) of 1,437 rows of digits" in outcome.out
    soft = SoftTargets(tmp_path / "workspace/soft-targets/soft-targets.h5")
    _, teacher = load(Workspace(tmp_path / "workspace").teacher("teacher"))
    chosen = np.random.default_rng(0).permutation(1437)[:200]
    inputs, labels = digits.train.read()[chosen], digits.train.labels[chosen]
    keys = row_keys(inputs)
    joined = AlignedSoftTargets(soft, soft.join(keys, labels, "rows"))
    feed = Feed(Examples(ArrayRows(inputs, "some"), labels, joined, soft.views, keys), 8, memory)
    assert feed.held == (memory > 3000)
    seen = []
    for epoch in (1, 2, 3, 4):
        buffers = list(feed.shuffled(np.random.default_rng(epoch), epoch))
        pictures = np.concatenate([soft.views.apply(each.inputs, each.transforms[0]).numpy() for each, _ in buffers])
        said, *top = (np.concatenate(column) for column in zip(*(each.soft for each, _ in buffers), strict=True))
        logits = teacher.logits(pictures)
        if top:
            logits, said = np.take_along_axis(logits, top[0], axis=1), said[:, :2]
        np.testing.assert_allclose(said, logits, atol=1e-4)
        order = np.argsort(np.concatenate([each.labels.numpy() for each, _ in buffers]), kind="stable")
        seen.append(pictures if memory > 3000 else pictures[order])
    if memory > 3000:
        np.testing.assert_array_equal(seen[0], inputs)
        np.testing.assert_array_equal(seen[3], inputs)
        assert (seen[1] != seen[2]).any(axis=(1, 2)).mean() > 0.9


def test_student_of_views(run, tmp_path, digits):
    """Views through all stages: the same bits again, verified, drawn; the command that status gives makes them."""
    views = ["soften", "--augment", "shift:1", "--views", "3"]
    train = ["--model", "mlp-30", "--epochs", "2"]
    for command in (
        [
            "train-teacher",
            *train,
            "--augment",
            "shift:1",
            "--dropout",
            "0.1,0.2",
            "--max-norm",
            "3",
            "--weight-decay",
            "0.01",
        ],
        views,
        ["train-student", *train],
        ["train-student", *train, "--name", "again"],
        ["train-student", *train, "--name", "hard", "--alpha", "1", "--augment", "flip"],
        ["plot"],
        ["evaluate"],
        ["verify"],
    ):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
    one, other = (np.load(tmp_path / f"workspace/students/{name}/checkpoint.npz") for name in ("student", "again"))
    assert all((one[name] == other[name]).all() for name in one.files if name != "head")
    assert "up to date" in run(*views).out
    assert "seed 0 -> 1" in run(*views, "--seed", "1").out
    from kdistill.workspace import Workspace

    place = Workspace(tmp_path / "workspace")
    teacher = place.teacher("teacher")
    command = teacher.command_for(teacher.manifest())
    assert "up to date" in run(*command.split()[1:], "--workspace", place.root).out
    assert run("verify").code == 0
    assert "soft-targets' has been made anew since" in run("status").out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train-teacher", "--augment", "shift"], "shift:PIXELS"),
        (["train-teacher", "--augment", "shift:1.5"], "shift:PIXELS"),
        (["train-teacher", "--augment", "shift:2,shift:1"], "each once"),
        (["train-teacher", "--augment", "flip:2"], "each once"),
        (["train-teacher", "--augment", "blur:2"], "each once"),
        (["train-teacher", "--augment", ""], "each once"),
        (["train-teacher", "--augment", "shift:2,crop:2"], "take one of them"),
        (["train-teacher", "--augment", "shift:28"], "28x28"),
        (["train-teacher", "--dropout", "0.5"], "two shares"),
        (["train-teacher", "--max-norm", "0"], "above 0"),
        (["train-teacher", "--weight-decay", "-1"], "above 0"),
        (
            ["train-teacher", "--dropout", "0,0.5", "--model", "keras.applications:MobileNetV3Small"],
            "built-in networks",
        ),
        (["soften", "--augment", "flip"], "belong together"),
        (["soften", "--views", "3"], "belong together"),
        (["soften", "--augment", "flip", "--views", "1"], "from 2 to 10000"),
        (["soften", "--seed", "1"], "add --augment"),
        (["soften", "--augment", "flip", "--views", "2", "--logits", "x.npy"], "leave one out"),
        (["train-student", "--augment", "flip"], "kdistill soften --augment flip --views 16"),
        (["run", "--augment", "flip"], "kdistill soften --augment flip --views 16"),
    ],
)
def test_wrong_views(run, workspace, command, message):
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file()}
    outcome = run(*command)
    assert outcome.code in (1, 2)
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file()} == before


def test_errors_of_the_reader_come_through(tmp_path):
    inputs = np.zeros((ROWS, 4), np.float32)
    inputs[900] = np.nan
    feed = Feed(Examples(ArrayRows(inputs, "some"), np.zeros(ROWS, np.int64)), 8, 1000)
    with pytest.raises(KdistillError, match="first in row 900"):
        list(feed.shuffled(np.random.default_rng(0), 1))


def streamed(digits, tmp_path):
    """The digits forty times over, as HDF5: more than a MiB, so that `--memory 1` streams them."""
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for split in ("train", "test"):
            part = getattr(digits, split)
            times = 4 if split == "train" else 1
            file[f"x_{split}"] = np.concatenate([np.roll(part.read(), shift, axis=2) for shift in range(times)])
            file[f"y_{split}"] = np.tile(part.labels, times)
    return tmp_path / "many.h5"


def test_streamed_training_resumes_to_the_bit(run, tmp_path, digits, monkeypatch):
    """A streamed run that is stopped goes on to the weights of one that was not; the two ways are said at the start."""
    from kdistill.training import loop as training

    path = streamed(digits, tmp_path)
    options = ["--dataset", path, "--model", "mlp-30", "--epochs", "3", "--memory", "1"]
    outcome = run("train-teacher", *options)
    assert outcome.code == 0, outcome.err
    assert "streamed through a shuffle buffer of 64 rows" in outcome.out
    write, stops = training.Checkpoint.write, []

    def stop(self, progress, variables):
        write(self, progress, variables)
        if progress.epoch == 2 and not stops:
            stops.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Checkpoint, "write", stop)
    assert run("train-teacher", *options, "--name", "again").code == 130
    assert "goes on after epoch 2" in run("train-teacher", *options, "--name", "again").out
    one, other = (np.load(tmp_path / f"workspace/teachers/{name}/checkpoint.npz") for name in ("teacher", "again"))
    for name in one.files:
        assert name == "head" or (one[name] == other[name]).all()
    assert "held in memory" in run("train-teacher", *options[:-2], "--name", "held").out
    assert run("soften", "--top-k", "4").code == 0
    outcome = run("train-student", "--model", "mlp-30", "--epochs", "2", "--memory", "1")
    assert outcome.code == 0, outcome.err
    assert "streamed" in outcome.out
    results = [one["results"] for one in map(read_manifest, (tmp_path / "workspace").glob("*s/*/manifest.json"))]
    assert all(result["test_accuracy"] > 0.8 for result in results)


def read_manifest(path):
    import json

    return json.loads(path.read_text())


LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
from kdistill.backend import tf  # what it maps is no measure of the data
tf.zeros(1)
import numpy, h5py
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
from kdistill.cli import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit needs /proc")
def test_half_a_million_rows_in_little_memory(tmp_path):
    """An HDF5 file of 500,000 rows, 512 MB, through all three stages in 450 MB."""
    path, draw = tmp_path / "large.h5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:  # rows of a class are alike, and each has its soft targets
        for split, rows in (("train", 500_000), ("test", 2000)):
            labels = draw.integers(0, 10, rows)
            inputs = file.create_dataset(f"x_{split}", (rows, 256), "f4", chunks=(1000, 256))
            for start in range(0, rows, 10_000):
                block = labels[start : start + 10_000]
                inputs[start : start + len(block)] = np.eye(256, dtype=np.float32)[block]
            file[f"y_{split}"] = labels
    common = ["--batch-size", "1000", "--workspace", str(tmp_path / "workspace")]
    train = [*common, "--epochs", "1", "--model", "small", "--memory", "32", "--learning-rate", "0.01"]
    for arguments in (
        ["train-teacher", "--dataset", str(path), *train],
        ["soften", *common],
        ["train-student", *train],
    ):
        result = subprocess.run(
            [sys.executable, "-c", LIMITED, str(450 << 20), *arguments], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr + result.stdout
    assert "streamed" in result.stdout
    assert "0 errors of 2,000 test rows" in result.stdout
