"""Feeds: every row once per epoch, in an order that depends on seed and epoch only, in bounded memory."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest

from kdistill.data import Split
from kdistill.data.keys import row_keys
from kdistill.data.readers.npz import Npz
from kdistill.data.rows import ArrayRows, Concat, Subset
from kdistill.errors import KdistillError
from kdistill.soft_targets.storage import Logits, LogitStorage
from kdistill.training.feed import Feed
from kdistill.training.training_rows import TrainingRows

ROWS = 1003


def numbered_rows(kind, tmp_path):
    """Return rows whose inputs, labels and logits all contain the number of the row."""
    values = np.arange(ROWS, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    if kind == "array":
        inputs = ArrayRows(values, "array")
    elif kind == "stream":
        np.savez(tmp_path / "some.npz", x_train=values, y_train=np.zeros(ROWS, int))
        inputs = Npz(str(tmp_path / "some.npz")).contents().train.inputs
    elif kind == "subset":
        mask = np.arange(3 * ROWS) % 3 == 0
        inputs = Subset(ArrayRows(np.repeat(values, 3, axis=0), "array"), mask)
    elif kind == "concat":
        inputs = Concat([ArrayRows(values[:700], "a"), ArrayRows(values[700:], "b")])
    teacher = Logits(LogitStorage(3, 1.0), values[:, :3] * 2)
    return TrainingRows(Split("train", inputs, np.arange(ROWS)), teacher=teacher)


@pytest.mark.parametrize("kind", ["array", "stream", "subset", "concat"])
@pytest.mark.parametrize("memory", [1 << 30, 16_000, 100])
def test_every_row_once_per_epoch(tmp_path, kind, memory):
    """Inputs, labels and logits stay together; all batches but the last are full; another seed gives another order."""
    feed = Feed(numbered_rows(kind, tmp_path), 8, memory)
    assert feed.in_memory == (memory == 1 << 30)
    orders = []
    for seed in (1, 1, 2):
        labels_in_order, sizes = [], []
        for (inputs, labels, (logits,), *_), order in feed.shuffled(np.random.default_rng(seed), 1):
            np.testing.assert_array_equal(inputs.numpy()[:, 0], labels.numpy())
            np.testing.assert_array_equal(logits.numpy()[:, 0], 2 * labels.numpy())
            labels_in_order.append(labels.numpy()[order])
            sizes.append(len(order))
        assert all(size % 8 == 0 for size in sizes[:-1])
        assert len(sizes) == 1 or max(sizes) * 36 <= max(memory, 8 * 8 * 36)
        orders.append(np.concatenate(labels_in_order))
        np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(ROWS))
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()
    in_order = np.concatenate([buffer.labels.numpy() for buffer in feed.in_order()])
    np.testing.assert_array_equal(in_order, np.arange(ROWS))


def test_streamed_rows_are_mixed(tmp_path):
    """A buffer has rows from all over the data, where they can be read from any position."""
    feed = Feed(numbered_rows("array", tmp_path), 8, 18_000)
    assert not feed.in_memory
    for buffer, _ in list(feed.shuffled(np.random.default_rng(0), 1))[:-1]:
        assert buffer.labels.numpy().std() > 150


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1 << 30, 3000])
@pytest.mark.parametrize("top_k", [None, 2])
def test_views_match_their_logits(run, tmp_path, digits, memory, top_k):
    """In each epoch, the teacher has the stored logits for the inputs that a student sees; epochs take views in turn."""
    from kdistill.networks.loading import load_network
    from kdistill.soft_targets import SoftTargets, align
    from kdistill.workspace import Workspace

    storage = ["--top-k", top_k] if top_k else []
    for command in (
        ["train-teacher", "--model", "mlp-30", "--epochs", "1"],
        ["soften", "--augment", "shift:2,flip", "--views", "3", "--seed", "4", *storage, "--temperature", "2"],
    ):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
    soft = SoftTargets(tmp_path / "workspace/soft-targets/soft-targets.h5")
    _, teacher = load_network(Workspace(tmp_path / "workspace").teacher("teacher"))
    chosen = np.random.default_rng(0).permutation(1437)[:200]
    inputs, labels = digits.train.read()[chosen], digits.train.labels[chosen]
    keys = row_keys(inputs)
    aligned = align(soft, keys, labels, "rows")
    split = Split("train", ArrayRows(inputs, "inputs"), labels)
    feed = Feed(TrainingRows(split, keys, aligned, views=soft.views), 8, memory)
    assert feed.in_memory == (memory > 3000)
    images_of_epochs = []
    for epoch in (1, 2, 3, 4):
        buffers = list(feed.shuffled(np.random.default_rng(epoch), epoch))
        images = np.concatenate([soft.views.apply(each.inputs, each.transforms[0]).numpy() for each, _ in buffers])
        stored, *top = (np.concatenate(column) for column in zip(*(each.soft for each, _ in buffers), strict=True))
        logits = teacher.logits(images)
        if top:
            logits, stored = np.take_along_axis(logits, top[0], axis=1), stored[:, :2]
        np.testing.assert_allclose(stored, logits, atol=1e-4)
        order = np.argsort(np.concatenate([each.labels.numpy() for each, _ in buffers]), kind="stable")
        images_of_epochs.append(images if memory > 3000 else images[order])
    if memory > 3000:
        np.testing.assert_array_equal(images_of_epochs[0], inputs)
        np.testing.assert_array_equal(images_of_epochs[3], inputs)
        assert (images_of_epochs[1] != images_of_epochs[2]).any(axis=(1, 2)).mean() > 0.9


@pytest.mark.slow
def test_student_of_views(run, tmp_path, digits):
    """All stages run with views: the same bits for the same seed, and the command in the manifest is up to date."""
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
        ["train-student", *train, "--name", "repeated"],
        ["train-student", *train, "--name", "hard", "--alpha", "1", "--augment", "flip"],
        ["plot"],
        ["evaluate"],
        ["verify"],
    ):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
    one, other = (np.load(tmp_path / f"workspace/students/{name}/checkpoint.npz") for name in ("student", "repeated"))
    assert all((one[name] == other[name]).all() for name in one.files if name != "head")
    assert "Up to date" in run(*views).out
    assert "0 -> 1" in run(*views, "--seed", "1").out
    from kdistill.workspace import Workspace

    place = Workspace(tmp_path / "workspace")
    teacher = place.teacher("teacher")
    command = teacher.command_for(teacher.manifest())
    assert "Up to date" in run(*command.split()[1:], "--workspace", place.root).out
    assert run("verify").code == 0
    assert "soft-targets" in run("status").out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (["train-teacher", "--augment", "shift"], ["--augment", "shift:PIXELS"]),
        (["train-teacher", "--augment", "shift:1.5"], ["--augment", "shift:PIXELS"]),
        (["train-teacher", "--augment", "shift:2,shift:1"], ["--augment", "shift:2,shift:1"]),
        (["train-teacher", "--augment", "flip:2"], ["--augment", "flip:2"]),
        (["train-teacher", "--augment", "blur:2"], ["--augment", "blur:2"]),
        (["train-teacher", "--augment", ""], ["--augment"]),
        (["train-teacher", "--augment", "shift:2,crop:2"], ["--augment", "shift:2,crop:2"]),
        (["train-teacher", "--augment", "shift:28"], ["--augment", "28x28"]),
        (["train-teacher", "--dropout", "0.5"], ["--dropout", "0.5"]),
        (["train-teacher", "--max-norm", "0"], ["--max-norm", "0"]),
        (["train-teacher", "--weight-decay", "-1"], ["--weight-decay", "-1"]),
        (
            ["train-teacher", "--dropout", "0,0.5", "--model", "keras.applications:MobileNetV3Small"],
            ["--dropout", "MobileNetV3Small"],
        ),
        (["soften", "--augment", "flip"], ["--augment", "--views"]),
        (["soften", "--views", "3"], ["--augment", "--views"]),
        (["soften", "--augment", "flip", "--views", "1"], ["--views", "2"]),
        (["soften", "--seed", "1"], ["--seed", "--augment"]),
        (["soften", "--augment", "flip", "--views", "2", "--logits", "x.npy"], ["--augment", "--logits"]),
        (["train-student", "--augment", "flip"], ["kdistill soften --augment flip --views 16"]),
        (["run", "--augment", "flip"], ["kdistill soften --augment flip --views 16"]),
    ],
)
def test_wrong_regularization(run, workspace, command, options):
    """The error is one line that names the options, and no file changes."""
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file()}
    outcome = run(*command)
    assert outcome.code in (1, 2)
    assert all(option in outcome.err for option in options)
    assert len(outcome.err.strip().splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file()} == before


def test_reader_errors_are_raised(tmp_path):
    """An error in the thread that reads ahead names the row."""
    inputs = np.zeros((ROWS, 4), np.float32)
    inputs[900] = np.nan
    feed = Feed(TrainingRows(Split("train", ArrayRows(inputs, "inputs"), np.zeros(ROWS, np.int64))), 8, 1000)
    with pytest.raises(KdistillError, match="900"):
        list(feed.shuffled(np.random.default_rng(0), 1))


def streamed(digits, tmp_path):
    """Write the digits four times, as HDF5: more than a MiB, so that `--memory 1` streams them."""
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for split in ("train", "test"):
            part = getattr(digits, split)
            times = 4 if split == "train" else 1
            file[f"x_{split}"] = np.concatenate([np.roll(part.read(), shift, axis=2) for shift in range(times)])
            file[f"y_{split}"] = np.tile(part.labels, times)
    return tmp_path / "many.h5"


@pytest.mark.slow
def test_streamed_training_resumes_to_the_bit(run, tmp_path, digits, monkeypatch):
    """A streamed run that is interrupted and resumed has the weights of an uninterrupted one."""
    from kdistill.training.checkpoint import Checkpoint

    path = streamed(digits, tmp_path)
    options = ["--dataset", path, "--model", "mlp-30", "--epochs", "3", "--memory", "1"]
    outcome = run("train-teacher", *options)
    assert outcome.code == 0, outcome.err
    assert "64 rows" in outcome.out
    write, stops = Checkpoint.write, []

    def stop(self, progress, *others):
        write(self, progress, *others)
        if progress.epoch == 2 and not stops:
            stops.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "write", stop)
    assert run("train-teacher", *options, "--name", "repeated").code == 130
    assert "from epoch 2" in run("train-teacher", *options, "--name", "repeated").out
    one, other = (np.load(tmp_path / f"workspace/teachers/{name}/checkpoint.npz") for name in ("teacher", "repeated"))
    for name in one.files:
        assert name == "head" or (one[name] == other[name]).all()
    assert "64 rows" not in run("train-teacher", *options[:-2], "--name", "in-memory").out
    assert run("soften", "--top-k", "4").code == 0
    outcome = run("train-student", "--model", "mlp-30", "--epochs", "2", "--memory", "1")
    assert outcome.code == 0, outcome.err
    results = [
        manifest["results"] for manifest in map(read_manifest, (tmp_path / "workspace").glob("*s/*/manifest.json"))
    ]
    assert all(result["test_accuracy"] > 0.8 for result in results)


def read_manifest(path):
    import json

    return json.loads(path.read_text())


LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
from kdistill.backend import tf  # so that what it maps is not counted
tf.zeros(1)
import numpy, h5py
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
from kdistill.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit needs /proc")
def test_half_a_million_rows_in_little_memory(tmp_path):
    """All three stages run on an HDF5 file of 500,000 rows, 512 MB, in 450 MB."""
    path, draw = tmp_path / "large.h5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:  # rows of a class are equal
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
    results = read_manifest(tmp_path / "workspace/students/student/manifest.json")["results"]
    assert (results["test_errors"], results["test_rows"]) == (0, 2000)
