"""Files of logits that another program has written: their formats, and how the order of their rows is checked."""

from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest
from helpers import QUICK, mentions

import kdistill
from kdistill.console import Reporter
from kdistill.data.readers.npz import NpzRows
from kdistill.evaluation import metrics
from kdistill.soft_targets import SoftTargets
from kdistill.stages.soften import _warn_if_trained_on

DIGITS = ["--dataset", "digits"]


def soft_targets(name="soft-targets"):
    return SoftTargets(f"workspace/soft-targets/{name}.h5")


def mostly_correct(digits):
    """Return logits of the training rows of the digits that are correct on most."""
    draw = np.random.default_rng(0)
    return (draw.normal(0, 1, (1437, 10)) + 4 * np.eye(10)[digits.train.labels]).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["npy", "npz", "h5"])
@pytest.mark.parametrize("kind", ["float16", "float32", "probabilities"])
def test_formats(run, tmp_path, digits, ending, kind):
    """Logits and probabilities in every format give the same soft targets; a shifted file is warned of."""
    logits = mostly_correct(digits)
    values = np.exp(metrics.log_softmax(logits)).astype(np.float32) if kind == "probabilities" else logits.astype(kind)
    path, name = tmp_path / f"values.{ending}", "probabilities" if kind == "probabilities" else "logits"
    if ending == "npy":
        np.save(path, values)
    elif ending == "npz":
        np.savez(path, **{name: values, "other": values})
    else:
        with h5py.File(path, "w") as file:
            file[name] = values
    outcome = run("soften", "--logits", path, *DIGITS, "--batch-size", "500")
    assert outcome.code == 0, outcome.err
    soft = soft_targets()
    tolerance = 0.01 if kind == "float16" else 1e-4
    np.testing.assert_allclose(metrics.log_softmax(soft.logits()), metrics.log_softmax(logits), atol=tolerance)
    assert soft.manifest.results["score"] == (values.argmax(axis=1) == digits.train.labels).sum()
    assert "warning" not in outcome.err
    np.save("shifted.npy", np.roll(logits, 1, axis=0))
    assert "warning" in run("soften", "--logits", "shifted.npy", *DIGITS, "--name", "b").err


@pytest.fixture
def bad_files(tmp_path, digits):
    """Write files into the working directory that are not logits of the digits."""
    logits, keys = np.zeros((1437, 10), np.float32), np.zeros((1437, 16), np.uint8)
    np.save(tmp_path / "few.npy", logits[:5])
    np.save(tmp_path / "narrow.npy", logits[:, :3])
    np.save(tmp_path / "ints.npy", logits.astype(int))
    np.savez(tmp_path / "short_labels.npz", logits=logits, labels=np.arange(7))
    np.savez(tmp_path / "short_keys.npz", logits=logits, row_keys=keys[:, :8])
    np.savez(tmp_path / "other_keys.npz", logits=logits, row_keys=keys)
    np.savez(tmp_path / "only_labels.npz", labels=digits.train.labels)
    np.savez(tmp_path / "two.npz", a=logits, b=logits)
    for name, value in (("nan", np.nan), ("large", 1e20), ("float64", 1e300)):
        broken = logits.astype(np.float64 if name == "float64" else np.float32)
        broken[[1300, 1309], 3] = value
        np.save(tmp_path / f"{name}.npy", broken)
    (tmp_path / "broken.keras").write_text("hello")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder").mkdir()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch.npy", ["--logits"]),
        ("few.npy", [5, "1,437"]),
        ("narrow.npy", [3, 10, "digits"]),
        ("ints.npy", ["(1437, 10)", "int64"]),
        ("nan.npy", ["row 1300"]),
        ("large.npy", ["row 1300"]),
        ("float64.npy", ["row 1300"]),
        ("two.npz", ["a, b", "logits"]),
        ("broken.keras", ["--logits", ".npy", ".npz", ".h5"]),
        ("pipe.npy", ["--logits"]),
        ("folder", ["--logits"]),
        ("short_labels.npz", ["labels", "(7,)", "(1437,)"]),
        ("short_keys.npz", ["row_keys", "(1437, 8)", "(1437, 16)"]),
        ("other_keys.npz", ["1,437", "row_keys"]),
        ("only_labels.npz", ["labels", "logits"]),
    ],
)
@pytest.mark.usefixtures("bad_files")
def test_bad_files_are_refused_in_one_line(run, tmp_path, name, words):
    """A single line with the file and what is wrong with it; nothing is written."""
    outcome = run("soften", "--logits", name, *DIGITS)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert mentions(outcome.err, name, *words) or mentions(outcome.err, tmp_path / name, *words), outcome.err
    assert not (tmp_path / "workspace/soft-targets").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["npz", "h5"])
@pytest.mark.parametrize("options", [[], ["--fraction", "0.3", "--batch-size", "100"]])
def test_rows_are_matched_by_row_keys(run, digits, ending, options):
    """Rows in any order give what rows in the transfer set's order do, for all rows or some; labels are compared too."""
    logits, keys, labels = mostly_correct(digits), kdistill.row_keys(digits.train.read()), digits.train.labels
    np.save("in_order.npy", logits)
    outcome = run("soften", "--logits", "in_order.npy", *DIGITS, *options)
    assert mentions(outcome.out, "in_order.npy", "kdistill.row_keys")
    expected = soft_targets().logits()
    for name, order in (("same", np.arange(1437)), ("other", np.random.default_rng(1).permutation(1437))):
        arrays = {"logits": logits[order], "row_keys": keys[order], "labels": labels[order]}
        if ending == "npz":
            np.savez(f"{name}.npz", **arrays)
        else:
            with h5py.File(f"{name}.h5", "w") as file:
                file.update(arrays)
        outcome = run("soften", "--logits", f"{name}.{ending}", *DIGITS, *options, "--name", name)
        assert outcome.code == 0, outcome.err
        assert "np.savez" not in outcome.out
        np.testing.assert_array_equal(soft_targets(name).logits(), expected)


def test_equal_rows_in_order_keep_their_own_logits(run, digits):
    """If the row keys are in the transfer set's order, equal rows are not replaced by the first of them."""
    inputs = np.repeat(digits.train.read()[:40], 2, axis=0)
    np.savez("pool.npz", x_train=inputs)
    logits = np.arange(800, dtype=np.float32).reshape(80, 10)
    np.savez("logits.npz", logits=logits, row_keys=kdistill.row_keys(inputs))
    assert run("soften", "--logits", "logits.npz", *DIGITS, "--transfer-set", "pool.npz").code == 0
    np.testing.assert_array_equal(soft_targets().logits(), logits)


@pytest.mark.parametrize("names", [False, True])
def test_labels_are_compared(run, digits, tmp_path, names):
    """Rows that are sorted by class and then shifted by a few are refused though most are correct."""
    order = np.argsort(digits.train.labels, kind="stable")
    inputs, labels, logits = digits.train.read()[order], digits.train.labels[order], mostly_correct(digits)[order]
    np.savez("sorted.npz", x_train=inputs, y_train=labels)
    in_file = labels.astype(str) if names else labels
    options = [*DIGITS, "--transfer-set", "sorted.npz"]
    np.savez("shifted.npz", logits=np.roll(logits, 7, axis=0), labels=np.roll(in_file, 7))
    outcome = run("soften", "--logits", "shifted.npz", *options)
    assert outcome.code == 1
    assert mentions(outcome.err, tmp_path / "shifted.npz", 70, "1,437", "row 0", 9, 0)
    assert not (tmp_path / "workspace").exists()
    np.savez("right.npz", logits=logits, labels=in_file)
    outcome = run("soften", "--logits", "right.npz", *options)
    assert outcome.code == 0, outcome.err
    assert "np.savez" not in outcome.out
    np.savez("unlabeled.npz", x_train=inputs)
    outcome = run("soften", "--logits", "right.npz", *DIGITS, "--transfer-set", "unlabeled.npz", "--name", "b")
    assert "np.savez" in outcome.out


def test_lengths_are_compared_before_anything_is_decompressed(run, tmp_path, monkeypatch):
    """A small file that decompresses to many rows is refused by its header."""
    files = []

    def watch(method):
        def watched(rows, *arguments):
            files.append(rows.path.name)
            return method(rows, *arguments)

        return watched

    for name in ("_unchecked_blocks", "read_unchecked"):
        monkeypatch.setattr(NpzRows, name, watch(getattr(NpzRows, name)))
    rows = 100_000
    arrays = {"labels": np.zeros(rows, int), "row_keys": np.zeros((rows, 16), np.uint8)}
    np.savez_compressed(tmp_path / "bomb.npz", logits=np.zeros((rows, 10), np.float16), **arrays)
    outcome = run("soften", "--logits", "bomb.npz", *DIGITS)
    assert outcome.code == 1
    assert mentions(outcome.err, "100,000", "1,437")
    assert set(files) == {"digits.npz"}


def test_probabilities_of_0(run, tmp_path, digits, monkeypatch):
    """The zeros of a row get a small part of its mass, or its smallest other probability if that is less."""
    votes = np.zeros((1437, 10), np.float32)
    votes[np.arange(1437), digits.train.labels] = 0.75
    votes[np.arange(1437), (digits.train.labels + 1) % 10] = 0.25
    votes[5] = [0, 1e-9, 1, 0, 0, 0, 0, 0, 0, 0]
    np.savez("votes.npz", probabilities=votes, labels=digits.train.labels)
    soften = ["soften", "--logits", "votes.npz", *DIGITS, "--batch-size", "500"]
    outcome = run(*soften)
    assert mentions(outcome.out, "11,496", "14,370", "80.0%")
    expected = np.where(votes == 0, 1e-4, votes)
    expected[5, votes[5] == 0] = votes[5, 1]
    expected = np.log(expected)
    soft = soft_targets()
    np.testing.assert_allclose(soft.logits(), expected - expected.mean(axis=1, keepdims=True), atol=1e-4)
    assert soft.manifest.settings["zero_mass"] == 1e-3
    assert json.loads(run("status", "--json").out)["artifacts"][0]["command"] == (
        f"kdistill soften --logits {tmp_path / 'votes.npz'} --dataset digits --batch-size 500"
    )
    assert run(*soften).up_to_date
    monkeypatch.setattr("kdistill.stages.soften.ZERO_MASS", 1e-4)
    assert mentions(run(*soften).out, "zero mass", 0.001, 0.0001)


@pytest.mark.slow
def test_logits_of_the_test_rows(run, digits, tmp_path):
    """With these, the teacher has a row in `evaluate`, and a sweep measures the agreement with it."""
    np.save("train.npy", mostly_correct(digits))
    draw, test = np.random.default_rng(3), digits.test
    logits = (draw.normal(0, 1, (360, 10)) + 4 * np.eye(10)[test.labels]).astype(np.float32)
    wrong = int((logits.argmax(axis=1) != test.labels).sum())
    order = draw.permutation(360)
    probabilities = np.exp(metrics.log_softmax(logits)).astype(np.float32)
    np.savez("test.npz", probabilities=probabilities[order], row_keys=kdistill.row_keys(test.read())[order])
    options = ["soften", "--logits", "train.npy", *DIGITS, "--test-logits", "test.npz"]
    outcome = run(*options)
    assert mentions(outcome.out, tmp_path / "test.npz", wrong, 360)
    assert run(*options).up_to_date
    assert mentions(run("status", "--json").out, "fresh")
    assert run("train-student", *QUICK).code == 0
    table = json.loads(run("evaluate", "--json").out)
    assert [(row["name"], row["split"]) for row in table] == [
        ("train.npy", "test"),
        ("student", "train"),
        ("student", "test"),
    ]
    assert table[0]["errors"] == wrong
    assert table[0]["nll"] == pytest.approx(metrics.negative_log_likelihood(logits, test.labels).mean(), rel=1e-4)
    assert table[2]["agreement"] > 0.5
    assert table[1]["agreement"] is None
    assert mentions(run("evaluate").out, "train.npy", "teacher", wrong)
    sweep = ["sweep", "--controls", "--seeds", "0", "--temperature", "4", *QUICK]
    assert run(*sweep).code == 0
    assert all(summary["agreement"]["mean"] > 0.3 for summary in json.loads(run(*sweep, "--json").out))
    assert run("verify").code == 0
    np.savez("test.npz", probabilities=np.roll(probabilities, 1, axis=0))
    assert mentions(run("status").out, "test logits", tmp_path / "test.npz")
    assert "train.npy" not in run("evaluate").out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--logits", "few.npy"], 1, ["few.npy", 5, 360, "test rows"]),
        (["--logits", "nosuch.npy"], 1, ["--test-logits nosuch.npy"]),
        (["--logits", "pipe.npy"], 1, ["--test-logits pipe.npy"]),
        (["--logits", "broken.keras"], 1, ["--test-logits", ".npz"]),
        (["--teacher", "few.npy"], 2, ["--test-logits", "--logits"]),
    ],
)
@pytest.mark.usefixtures("bad_files")
def test_bad_files_of_the_test_rows(run, tmp_path, digits, options, code, words):
    """They are refused before anything is written."""
    np.save("good.npy", mostly_correct(digits))
    option, file = options
    first = ["--logits", "good.npy"] if option == "--logits" else ["--teacher", "nosuch"]
    outcome = run("soften", *first, "--test-logits", file, *DIGITS)
    assert (outcome.code, outcome.err.count("\n")) == (code, 1)
    assert mentions(outcome.err, *words), outcome.err
    assert not (tmp_path / "workspace/soft-targets").exists()


class Warnings(Reporter):
    """A reporter that keeps warnings."""

    def __init__(self):
        super().__init__(quiet=True)
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


def test_teacher_that_is_always_correct_is_warned_of(run, digits, workspace):
    """On its training rows, in whichever file, but not on other rows; and not if it was trained in the workspace."""
    logits, train, test = 5 * np.eye(10, dtype=np.float32), digits.train, digits.test
    np.save("all.npy", logits[train.labels])
    assert mentions(run("soften", "--logits", "all.npy", *DIGITS).err, "warning", "1,437")
    np.save("most.npy", logits[[(train.labels[0] + 1) % 10, *train.labels[1:]]])
    assert "warning" not in run("soften", "--logits", "most.npy", *DIGITS).err
    for name, split in (("test", test), ("train", train)):
        np.savez(f"{name}.npz", x_train=split.read(), y_train=split.labels)
    np.save("test.npy", logits[test.labels])
    assert "warning" not in run("soften", "--logits", "test.npy", *DIGITS, "--transfer-set", "test.npz").err
    outcome = run("soften", "--logits", "all.npy", *DIGITS, "--transfer-set", "train.npz")
    assert mentions(outcome.err, "warning", "1,437", "--transfer-set")
    reporter = Warnings()
    _warn_if_trained_on(soft_targets().manifest, train, digits, reporter)
    assert len(reporter.warnings) == 1
