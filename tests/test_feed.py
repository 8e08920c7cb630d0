"""Rows on their way to a network: every row once an epoch, in an order of seed and epoch alone, in bounded memory."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest

from kdistill.errors import KdistillError
from kdistill.feed import Examples, Feed
from kdistill.readers import Array, Chained, Chosen
from kdistill.readers.npz import Npz
from kdistill.stored_logits import Form, Logits

ROWS = 1003


def examples(kind, tmp_path):
    """Rows whose inputs, labels and logits all say which row they are."""
    inputs = np.arange(ROWS, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    rows = Array(inputs, "some")
    if kind == "stream":
        np.savez(tmp_path / "some.npz", x_train=inputs, y_train=np.zeros(ROWS, int))
        rows = Npz(str(tmp_path / "some.npz")).contents().train.inputs
    if kind == "chosen":
        mask = np.zeros(3 * ROWS, bool)
        mask[::3] = True
        rows = Chosen(Array(np.repeat(inputs, 3, axis=0), "some"), mask)
    if kind == "chained":
        rows = Chained([Array(inputs[:700], "a"), Array(inputs[700:], "b")])
    return Examples(rows, np.arange(ROWS), Logits(Form(3, 1.0), inputs[:, :3] * 2))


@pytest.mark.parametrize("kind", ["array", "stream", "chosen", "chained"])
@pytest.mark.parametrize("memory", [1 << 30, 16_000, 100])
def test_every_row_once_an_epoch(tmp_path, kind, memory):
    """Inputs, labels and logits stay together; whole batches but for an epoch's last; another epoch, another order."""
    feed = Feed(examples(kind, tmp_path), 8, memory)
    assert feed.held == (memory == 1 << 30)
    orders = []
    for seed in (1, 1, 2):
        seen, sizes = [], []
        for (inputs, labels, (said,)), order in feed.shuffled(np.random.default_rng(seed)):
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
    in_order = np.concatenate([labels.numpy() for _, labels, _ in feed.in_order()])
    np.testing.assert_array_equal(in_order, np.arange(ROWS))


def test_streamed_rows_are_mixed(tmp_path):
    """A buffer holds rows from all over the data, where they can be read from any place."""
    feed = Feed(examples("array", tmp_path), 8, 18_000)
    assert not feed.held
    for (_, labels, _), _ in list(feed.shuffled(np.random.default_rng(0)))[:-1]:
        assert labels.numpy().std() > 150


def test_errors_of_the_reader_come_through(tmp_path):
    inputs = np.zeros((ROWS, 4), np.float32)
    inputs[900] = np.nan
    feed = Feed(Examples(Array(inputs, "some"), np.zeros(ROWS, np.int64)), 8, 1000)
    with pytest.raises(KdistillError, match="first in row 900"):
        list(feed.shuffled(np.random.default_rng(0)))


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
    from kdistill import training

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
