"""Teachers from outside, several of them, and files of what another program said; transfer sets of any rows."""

from __future__ import annotations

import json
import os
import re
import shutil

import h5py
import numpy as np
import pytest
from helpers import QUICK, README

import kdistill
from kdistill.backend import keras, tf
from kdistill.console import Reporter
from kdistill.data.keys import validation_rows
from kdistill.data.readers.npz import NpzMember
from kdistill.evaluation import metrics
from kdistill.soft_targets import SoftTargets, transfer_set
from kdistill.soft_targets.storage import LogitStorage
from kdistill.stages.soften import _warn_of_perfection

DIGITS = ["--dataset", "digits"]


def stored(workspace, name="soft-targets"):
    """The logits of a soft-target file, and the file."""
    soft = SoftTargets(workspace / f"soft-targets/{name}.h5")
    return soft.logits(), soft


class Plain(tf.Module):
    """A network of plain TensorFlow: a linear map of the pixels, with several signatures and outputs."""

    def __init__(self, classes=10):
        super().__init__()
        draw = np.random.default_rng(0)
        self.weights = tf.Variable(draw.normal(0, 0.1, (784, classes)).astype(np.float32))

    def logits(self, inputs):
        return tf.reshape(inputs, (-1, 784)) @ self.weights

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28), tf.float32)])
    def serve(self, inputs):
        return {"scores": self.logits(inputs)}

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28), tf.float32)])
    def both(self, inputs):
        logits = self.logits(inputs)
        return {"features": tf.nn.relu(logits), "probabilities": tf.nn.softmax(logits)}

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28), tf.uint8)])
    def bytes(self, inputs):
        return self.logits(tf.cast(inputs, tf.float32))

    @tf.function(input_signature=[tf.TensorSpec((100, 28, 28), tf.float32)])
    def hundred(self, inputs):
        return self.logits(inputs)


def save(place, function, **signatures):
    tf.saved_model.save(function.__self__ if hasattr(function, "__self__") else function, place, signatures=signatures)
    return place


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """SavedModels of one network in several dresses, and the network."""
    place, network = tmp_path_factory.mktemp("plain"), Plain()
    one = {"serving_default": network.serve}
    tf.saved_model.save(network, place / "one", signatures=one)
    many = {"a": network.serve, "b": network.both, "bytes": network.bytes, "hundred": network.hundred}
    tf.saved_model.save(network, place / "many", signatures=many)
    tf.saved_model.save(network, place / "none")
    tf.saved_model.save(small := Plain(3), place / "three", signatures=small.serve)
    return place, network


def test_saved_model_of_plain_tensorflow(run, tmp_path, plain, digits):
    """What soften keeps is what the network says; a student of it trains, and both are measured."""
    place, network = plain
    outcome = run("soften", "--teacher", place / "one", *DIGITS, "--temperature", "4")
    assert outcome.code == 0, outcome.err
    logits, soft = stored(tmp_path / "workspace")
    np.testing.assert_allclose(logits, network.logits(np.float32(digits.train.read()) / 255), atol=1e-4)
    assert soft.teacher == str(place / "one")
    assert "--model mlp-800 --alpha 0.1" in outcome.out
    missing = run("train-student")
    assert (missing.code, "--model is missing" in missing.err) == (2, True)
    assert run("train-student", *QUICK).code == 0
    table = json.loads(run("evaluate", "--json").out)
    assert [(one["name"], one["role"]) for one in table][::2] == [("one", "teacher"), ("student", "student")]
    assert 0 < table[3]["agreement"] < 1
    assert table[0]["parameters"] is None
    assert "one" in run("evaluate").out
    assert run("verify").code == 0
    assert "up to date" in run("soften", "--teacher", place / "one", *DIGITS, "--temperature", "4").out
    assert json.loads(run("status", "--json").out)["artifacts"][0]["state"] == "fresh"
    lines = run("status").out.splitlines()
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 6, 0]  # dataset, soft targets, student
    assert lines[-1] == "next: kdistill plot"


def test_teacher_that_changes_makes_stale(run, tmp_path, digits):
    network = Plain()
    tf.saved_model.save(network, tmp_path / "net", signatures=network.serve)
    assert run("soften", "--teacher", "./net", *DIGITS).code == 0
    network.weights.assign(network.weights * 2)
    tf.saved_model.save(network, tmp_path / "net", signatures=network.serve)
    said = json.loads(run("status", "--json").out)
    (standing,) = said["artifacts"]
    assert standing["state"] == "stale"
    assert said["next"] == standing["command"]
    assert f"the teacher {tmp_path / 'net'} has changed" in standing["reasons"][0]
    assert standing["command"] == f"kdistill soften --dataset digits --teacher {tmp_path / 'net'} --temperature 20"


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        (["--signature", "a"], 1 / 255),
        (["--signature", "b", "--output", "probabilities"], 1 / 255),
        (["--signature", "bytes"], 1),
        (["--signature", "hundred", "--batch-size", "250"], 1 / 255),
        (["--signature", "a", "--teacher-input", "raw"], 1),
    ],
)
def test_signatures_outputs_and_scales(run, tmp_path, plain, digits, options, scale):
    place, network = plain
    outcome = run("soften", "--teacher", place / "many", *DIGITS, *options)
    assert outcome.code == 0, outcome.err
    logits, _ = stored(tmp_path / "workspace")
    expected = network.logits(np.float32(digits.train.read()) * np.float32(scale)).numpy()
    if "probabilities" in options:
        assert f"{place / 'many'} gives probabilities" in outcome.out
        expected = metrics.log_softmax(expected)
        expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)


def test_keras_file_with_a_softmax(run, tmp_path, digits):
    """A `.keras` teacher that ends in a softmax: its logarithms are logits; told that they are logits, they stay."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
    net.save(tmp_path / "net.keras")
    outcome = run("soften", "--teacher", "net.keras", *DIGITS)
    assert "gives probabilities: their logarithms are taken for logits" in outcome.out
    logits, _ = stored(tmp_path / "workspace")
    said = net.predict(np.float32(digits.train.read()) / 255, verbose=0)
    np.testing.assert_allclose(np.exp(metrics.log_softmax(logits)), said, atol=1e-5)
    run("soften", "--teacher", "net.keras", *DIGITS, "--teacher-output", "logits", "--name", "as-logits")
    np.testing.assert_allclose(stored(tmp_path / "workspace", "as-logits")[0], said, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--teacher", "nosuch", *DIGITS], 1, "kdistill train-teacher"),
        (["--teacher", "./nosuch", *DIGITS], 1, "no such SavedModel or .keras file, and no such teacher in workspace"),
        (["--teacher", "PLACE", *DIGITS], 1, "is neither a SavedModel (a directory with saved_model.pb)"),
        (["--teacher", "PLACE/one"], 2, "--dataset is missing"),
        (["--teacher", "PLACE/none", *DIGITS], 1, "none has no signatures"),
        (["--teacher", "PLACE/many", *DIGITS], 1, "--signature with one of a, b, bytes, hundred"),
        (["--teacher", "PLACE/many", *DIGITS, "--signature", "c"], 1, "'c'; pass --signature with one of a, b"),
        (["--teacher", "PLACE/many", *DIGITS, "--signature", "b"], 1, "--output with one of features, probabilities"),
        (["--teacher", "PLACE/three", *DIGITS], 1, "3 logits, but digits has 10 classes"),
        (["--teacher", "PLACE/one", "--dataset", "wide.npz"], 1, "shape (28, 28) float32, but "),
        (["--teacher", "PLACE/one", "--teacher", "PLACE/one", *DIGITS], 2, "is given twice"),
        (["--teacher", "a\nb", *DIGITS], 2, "'a\\nb'"),
        (["--teacher", "cut", *DIGITS], 1, "cut is not a SavedModel"),
        (["--teacher", "broken.keras", *DIGITS], 1, "broken.keras is not a .keras file"),
        (["--teacher", "PLACE/one", *DIGITS, "--top-k", "10"], 2, "--top-k 10 is not below the 10 classes of digits"),
        (["--teacher", "PLACE/one", *DIGITS, "--top-k", "0"], 2, "--top-k is 0"),
        (["--teacher", "PLACE/one", *DIGITS, "--transfer-set", "wide.npz"], 1, "they must be alike"),
        (["--teacher", "PLACE/one", *DIGITS, "--transfer-set", "nosuch"], 1, "--transfer-set nosuch: there is no such"),
        (["--teacher", "nosuch.keras", *DIGITS], 1, "there is no such SavedModel or .keras file"),
        (["--teacher", "PLACE/one", *DIGITS, "--teacher-output", "probabilities"], 1, "--teacher-output logits"),
        (["--teacher", "PLACE/one", "--logits", "few.npy", *DIGITS], 2, "--logits stands in for a teacher"),
        (["--teacher", "PLACE/one", *DIGITS, *2 * ["--transfer-set", "digits"]], 2, "digits is given twice"),
        (["--logits", "nosuch.npy", *DIGITS], 1, "there is no such file"),
        (["--logits", "few.npy", *DIGITS], 1, "5 rows of logits, and the transfer set 1,437 rows"),
        (["--logits", "narrow.npy", *DIGITS], 1, "gives 3 logits a row, and digits has 10 classes"),
        (["--logits", "ints.npy", *DIGITS], 1, "logits are floats, (rows, classes)"),
        (["--logits", "nan.npy", *DIGITS], 1, "holds NaN or infinity, first in row 7"),
        (["--logits", "two.npz", *DIGITS], 1, "holds a, b: logits are in an array of the name logits"),
        (["--logits", "broken.keras", *DIGITS], 1, "it needs an .npy, an .npz or an .h5 file"),
        (["--logits", "pipe.npy", *DIGITS], 1, "--logits pipe.npy is not a regular file"),
        (["--logits", "folder", *DIGITS], 1, "--logits folder is not a regular file"),
        (["--logits", "short_labels.npz", *DIGITS], 1, "labels has shape (7,)"),
        (["--logits", "short_keys.npz", *DIGITS], 1, "row_keys is (1437, 8) of uint8"),
        (["--logits", "other_keys.npz", *DIGITS], 1, "1,437 of the 1,437 rows"),
        (["--logits", "only_labels.npz", *DIGITS], 1, "holds labels: logits are in an array"),
        (["--teacher", "folder/pipe.keras", *DIGITS], 1, "folder/pipe.keras is not a regular file"),
        (["--teacher", "folder/model.onnx", *DIGITS], 1, "--logits logits.npz"),
        (["--teacher", "folder/model.pt", *DIGITS], 1, "--logits logits.npz"),
        (["--teacher", "folder/forest.joblib", *DIGITS], 1, "--logits logits.npz"),
        (
            ["--teacher", "folder/net.weights.h5", *DIGITS],
            1,
            "train-teacher --model MODEL --weights folder/net.weights.h5",
        ),
        (["--teacher", "folder/net.h5", *DIGITS], 1, "--logits folder/net.h5"),
        (["--teacher", "few.npy", *DIGITS], 1, "--logits few.npy"),
    ],
)
def test_bad_teachers_are_one_line(run, tmp_path, plain, digits, options, code, said):
    wide = np.zeros((20, 32, 32), np.uint8)
    np.savez(tmp_path / "wide.npz", x_train=wide, y_train=np.arange(20) % 10, x_test=wide, y_test=np.arange(20) % 10)
    (tmp_path / "broken.keras").write_text("hello")
    shutil.copytree(plain[0] / "one", tmp_path / "cut")
    os.truncate(tmp_path / "cut/variables/variables.data-00000-of-00001", 1000)
    rows = len(digits.train)
    np.save(tmp_path / "few.npy", np.zeros((5, 10), np.float32))
    np.save(tmp_path / "narrow.npy", np.zeros((rows, 3), np.float32))
    np.save(tmp_path / "ints.npy", np.zeros((rows, 10), int))
    broken = np.zeros((rows, 10), np.float32)
    broken[7, 3] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    np.savez(tmp_path / "two.npz", a=broken, b=broken)
    whole, keys = np.zeros((rows, 10), np.float32), np.zeros((rows, 16), np.uint8)
    np.savez(tmp_path / "short_labels.npz", logits=whole, labels=np.arange(7))
    np.savez(tmp_path / "short_keys.npz", logits=whole, row_keys=keys[:, :8])
    np.savez(tmp_path / "other_keys.npz", logits=whole, row_keys=keys)
    np.savez(tmp_path / "only_labels.npz", labels=digits.train.labels)
    (tmp_path / "folder").mkdir()
    for name in ("model.onnx", "model.pt", "forest.joblib", "net.weights.h5", "net.h5"):
        (tmp_path / "folder" / name).write_text("hello")
    os.mkfifo(tmp_path / "pipe.npy")
    os.mkfifo(tmp_path / "folder/pipe.keras")
    outcome = run("soften", *(option.replace("PLACE", str(plain[0])) for option in options))
    assert (outcome.code, outcome.out) == (code, "") or "softens" in outcome.out
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err
    assert not (tmp_path / "workspace/soft-targets").exists()


def test_several_teachers(run, tmp_path, digits):
    """The arithmetic mean is of probabilities at T, the geometric of logits; a student at another T is warned."""
    for seed in (1, 2, 3):
        name = f"t{seed}"
        assert run("train-teacher", "--name", name, "--seed", seed, *QUICK).code == 0
    workspace = tmp_path / "workspace"
    asked = [part for seed in (1, 2, 3) for part in ("--teacher", f"t{seed}")]
    outcome = run("soften", *asked, "--temperature", "3")
    assert "with t1 + t2 + t3 (arithmetic mean)" in outcome.out
    assert run("soften", *asked, "--temperature", "3", "--mean", "geometric", "--name", "geometric").code == 0
    each = []
    for seed in (1, 2, 3):
        assert run("soften", "--teacher", f"t{seed}", "--name", f"s{seed}").code == 0
        each.append(stored(workspace, f"s{seed}")[0])
    mean, soft = stored(workspace)
    expected = np.mean([np.exp(metrics.log_softmax(logits, 3.0)) for logits in each], axis=0)
    np.testing.assert_allclose(np.exp(metrics.log_softmax(mean, 3.0)), expected, atol=1e-6)
    np.testing.assert_allclose(mean.mean(axis=1), 0, atol=1e-4)  # or --loss mse would be of little else
    np.testing.assert_allclose(stored(workspace, "geometric")[0], np.mean(each, axis=0), atol=1e-5)
    assert soft.teacher == "t1, t2, t3"
    assert run("verify").code == 0
    other = run("train-student", *QUICK, "--temperature", "5")
    assert "warning: student 'student' is trained at T = 5" in other.err
    assert "warning" not in run("train-student", *QUICK, "--soft-targets", "geometric", "--temperature", "5").err
    assert "t1 + t2 + t3" in run("evaluate").out


@pytest.mark.parametrize("ending", ["npy", "npz", "h5"])
@pytest.mark.parametrize("kind", ["float16", "float32", "probabilities"])
def test_logits_of_another_program(run, tmp_path, digits, ending, kind):
    """No teacher at all: what a file says of the rows, in their order."""
    draw = np.random.default_rng(0)
    logits = (draw.normal(0, 1, (1437, 10)) + 4 * np.eye(10)[digits.train.labels]).astype(np.float32)
    said = np.exp(metrics.log_softmax(logits)).astype(np.float32) if kind == "probabilities" else logits.astype(kind)
    path, name = tmp_path / f"said.{ending}", "probabilities" if kind == "probabilities" else "logits"
    if ending == "npy":
        np.save(path, said)
    elif ending == "npz":
        np.savez(path, **{name: said, "other": said})
    else:
        with h5py.File(path, "w") as file:
            file[name] = said
    outcome = run("soften", "--logits", path, *DIGITS, "--batch-size", "500")
    assert outcome.code == 0, outcome.err
    found, soft = stored(tmp_path / "workspace")
    tolerance = 0.01 if kind == "float16" else 1e-4
    np.testing.assert_allclose(metrics.log_softmax(found), metrics.log_softmax(logits), atol=tolerance)
    assert soft.manifest.results["correct"] == (said.argmax(axis=1) == digits.train.labels).sum()
    assert "hardly better than chance" not in outcome.err
    np.save(tmp_path / "shifted.npy", np.roll(logits, 1, axis=0))
    assert "hardly better than chance" in run("soften", "--logits", "shifted.npy", *DIGITS, "--name", "b").err


class Broken(tf.Module):
    """A network that gives NaN for every row with a certain sum of pixels."""

    def __init__(self, total):
        super().__init__()
        self.total = tf.constant(total, tf.int64)

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28), tf.uint8)])
    def serve(self, inputs):
        totals = tf.reduce_sum(tf.cast(inputs, tf.int64), (1, 2))
        logits = tf.cast(inputs, tf.float32)[:, 14, 9:19]
        return tf.where(totals[:, None] == self.total, np.float32(np.nan), logits)


@pytest.mark.parametrize("kind", ["network", "ensemble", "views", "float64", "large"])
def test_logits_that_no_student_could_match(run, tmp_path, plain, digits, kind):
    """Whatever they come from, they are refused with what gave them and the first row, and nothing is left behind."""
    inputs = digits.train.read()
    totals = inputs.sum(axis=(1, 2), dtype=int)
    row, who = 1300, "said.npy"
    if kind in ("float64", "large"):
        logits = np.zeros((len(inputs), 10))
        logits[[row, row + 9], 3] = 1e300 if kind == "float64" else 1e20
        np.save(who, logits)
        options = ["--logits", who]
    else:
        row, who = int(np.argmax(totals == totals[row])), "net"
        network = Broken(totals[row])
        tf.saved_model.save(network, tmp_path / "net", signatures=network.serve)
        options = ["--teacher", "./net", *(["--teacher", plain[0] / "one"] if kind == "ensemble" else [])]
        options += ["--augment", "shift:1", "--views", "2"] if kind == "views" else []
    outcome = run("soften", *options, *DIGITS, "--batch-size", "300")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert str(tmp_path / who) in outcome.err
    assert re.search(rf"\brow {row}\b", outcome.err)
    assert not (tmp_path / "workspace").exists()


def with_right_ones(digits, seed=0):
    """Logits of digits' training rows, right on most."""
    draw = np.random.default_rng(seed)
    return (draw.normal(0, 1, (1437, 10)) + 4 * np.eye(10)[digits.train.labels]).astype(np.float32)


@pytest.mark.parametrize("ending", ["npz", "h5"])
@pytest.mark.parametrize("options", [[], ["--fraction", "0.3", "--batch-size", "100"]])
def test_logits_are_joined_by_row_keys(run, tmp_path, digits, ending, options):
    """Rows in any order give what rows in the transfer set's order do, of all rows or some; labels are checked too."""
    logits, order = with_right_ones(digits), np.random.default_rng(1).permutation(1437)
    keys, labels = kdistill.row_keys(digits.train.read()), digits.train.labels
    np.save("in_order.npy", logits)
    outcome = run("soften", "--logits", "in_order.npy", *DIGITS, *options)
    assert "the order of the rows of" in outcome.out
    assert "kdistill.row_keys" in outcome.out
    for name, places in (("same", np.arange(1437)), ("other", order)):
        arrays = {"logits": logits[places], "row_keys": keys[places], "labels": labels[places]}
        if ending == "npz":
            np.savez(f"{name}.npz", **arrays)
        else:
            with h5py.File(f"{name}.h5", "w") as file:
                file.update(arrays)
        outcome = run("soften", "--logits", f"{name}.{ending}", *DIGITS, *options, "--name", name)
        assert outcome.code == 0, outcome.err
        assert "is trusted" not in outcome.out
        expected, _ = stored(tmp_path / "workspace")
        np.testing.assert_array_equal(stored(tmp_path / "workspace", name)[0], expected)


def test_equal_rows_in_order_keep_their_own_logits(run, tmp_path, digits):
    inputs = np.repeat(digits.train.read()[:40], 2, axis=0)
    pool("pool.npz", inputs)
    logits = np.arange(800, dtype=np.float32).reshape(80, 10)
    np.savez("said.npz", logits=logits, row_keys=kdistill.row_keys(inputs))
    assert run("soften", "--logits", "said.npz", *DIGITS, "--transfer-set", "pool.npz").code == 0
    np.testing.assert_array_equal(stored(tmp_path / "workspace")[0], logits)


@pytest.mark.parametrize("names", [False, True])
def test_labels_beside_logits_are_compared(run, digits, tmp_path, names):
    """Rows sorted by class and rolled by a few, right on most of them, are refused; rows in order are not."""
    order = np.argsort(digits.train.labels, kind="stable")
    inputs, labels = digits.train.read()[order], digits.train.labels[order]
    pool("sorted.npz", inputs, labels)
    logits = with_right_ones(digits)[order]
    given = labels.astype(str) if names else labels
    where = [*DIGITS, "--transfer-set", "sorted.npz"]
    np.savez("rolled.npz", logits=np.roll(logits, 7, axis=0), labels=np.roll(given, 7))
    outcome = run("soften", "--logits", "rolled.npz", *where)
    assert outcome.code == 1
    assert "in 70 of 1,437 rows, first in row 0 (9 instead of 0)" in outcome.err
    assert not (tmp_path / "workspace").exists()
    np.savez("right.npz", logits=logits, labels=given)
    outcome = run("soften", "--logits", "right.npz", *where)
    assert outcome.code == 0, outcome.err
    assert "is trusted" not in outcome.out
    pool("unlabelled.npz", inputs)
    outcome = run("soften", "--logits", "right.npz", *DIGITS, "--transfer-set", "unlabelled.npz", "--name", "b")
    assert "is trusted (no row has a label in both)" in outcome.out


def test_lengths_are_compared_before_anything_is_decompressed(run, tmp_path, monkeypatch):
    blocks = NpzMember.blocks

    def watched(rows, size):
        assert rows.path != tmp_path / "bomb.npz"
        return blocks(rows, size)

    monkeypatch.setattr(NpzMember, "blocks", watched)
    rows = 100_000
    arrays = {"labels": np.zeros(rows, int), "row_keys": np.zeros((rows, 16), np.uint8)}
    np.savez_compressed(tmp_path / "bomb.npz", logits=np.zeros((rows, 10), np.float16), **arrays)
    outcome = run("soften", "--logits", "bomb.npz", *DIGITS)
    assert (outcome.code, "100,000 rows" in outcome.err, "1,437" in outcome.err) == (1, True, True)


def test_probabilities_of_0(run, tmp_path, digits, monkeypatch):
    """The zeros of a row get a small share of the mass, or what its smallest other probability has, and are counted."""
    votes = np.zeros((1437, 10), np.float32)
    votes[np.arange(1437), digits.train.labels] = 0.75
    votes[np.arange(1437), (digits.train.labels + 1) % 10] = 0.25
    votes[5] = [0, 1e-9, 1, 0, 0, 0, 0, 0, 0, 0]
    np.savez("votes.npz", probabilities=votes, labels=digits.train.labels)
    soften = ["soften", "--logits", "votes.npz", *DIGITS, "--batch-size", "500"]
    outcome = run(*soften)
    assert "11,496 of 14,370 probabilities (80.0%)" in outcome.out
    logits, soft = stored(tmp_path / "workspace")
    expected = np.where(votes == 0, 1e-4, votes)
    expected[5, votes[5] == 0] = votes[5, 1]
    expected = np.log(expected)
    np.testing.assert_allclose(logits, expected - expected.mean(axis=1, keepdims=True), atol=1e-4)
    assert soft.manifest.settings["zero_mass"] == 1e-3
    assert json.loads(run("status", "--json").out)["artifacts"][0]["command"] == (
        f"kdistill soften --dataset digits --logits {tmp_path / 'votes.npz'} --temperature 20 --batch-size 500"
    )
    assert "up to date" in run(*soften).out
    monkeypatch.setattr("kdistill.stages.soften.ZERO_MASS", 1e-4)
    assert "zero mass 0.001 -> 0.0001" in run(*soften).out


def test_teacher_that_is_always_right_is_warned_of(run, tmp_path, digits, workspace):
    """On its training rows, whatever file they lie in, and not on others; one of the workspace is not."""
    logits = 5 * np.eye(10, dtype=np.float32)
    np.save("all.npy", logits[digits.train.labels])
    warning = "right on all 1,437 labelled rows"
    assert warning in run("soften", "--logits", "all.npy", *DIGITS).err
    np.save("most.npy", logits[[(digits.train.labels[0] + 1) % 10, *digits.train.labels[1:]]])
    assert "warning" not in run("soften", "--logits", "most.npy", *DIGITS).err
    pool("test.npz", digits.test.read(), digits.test.labels)
    pool("train.npz", digits.train.read(), digits.train.labels)
    np.save("test.npy", logits[digits.test.labels])
    assert "warning" not in run("soften", "--logits", "test.npy", *DIGITS, "--transfer-set", "test.npz").err
    assert warning in run("soften", "--logits", "all.npy", *DIGITS, "--transfer-set", "train.npz").err
    manifest = SoftTargets(workspace / "soft-targets/soft-targets.h5").manifest
    _warn_of_perfection(manifest, digits.train, digits, (said := Heard()), outside=False)
    assert not said.warnings
    _warn_of_perfection(manifest, digits.train, digits, said, outside=True)
    assert len(said.warnings) == 1


class Heard(Reporter):
    """Keeps warnings."""

    def __init__(self):
        super().__init__(quiet=True)
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


def test_logits_of_pytorch(run, tmp_path, digits):
    """The README's lines for PyTorch, as they stand there, write a file that soften takes."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    readme = README.read_text()
    (lines,) = re.findall(r"^```python\n(with torch\.no_grad.*?)^```", readme, re.DOTALL | re.MULTILINE)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()
    names = {"torch": torch, "np": np, "kdistill": kdistill, "network": network, "x_train": digits.train.read()}
    exec(lines, names)
    assert run("soften", "--logits", "logits.npz", *DIGITS).code == 0
    np.testing.assert_array_equal(stored(tmp_path / "workspace")[0], names["logits"].numpy())


def pool(path, inputs, labels=None):
    arrays = {"x_train": inputs} if labels is None else {"x_train": inputs, "y_train": labels}
    np.savez(path, **arrays)
    return path


def test_unlabelled_transfer_set(run, workspace, digits, tmp_path):
    """Inputs come from the transfer set, validation and test from the dataset; without labels alpha must be 0."""
    inputs = digits.train.read()
    shifted = np.roll(inputs, 1, axis=2)  # rows that the dataset has not
    pool("pool.npz", np.concatenate([shifted, digits.test.read()[:30], inputs]))
    outcome = run("soften", "--transfer-set", "pool.npz")
    assert outcome.code == 0, outcome.err
    assert "0 of them labelled" in outcome.out
    assert "--alpha 0" in outcome.out.splitlines()[-1]
    refused = run("train-student", *QUICK)
    assert (refused.code, "has no labels" in refused.err, "--alpha 0" in refused.err) == (1, True, True)
    outcome = run("train-student", "--model", "mlp-30", "--epochs", "3", "--alpha", "0", "--validation-fraction", "0.2")
    assert outcome.code == 0, outcome.err
    results = json.loads((workspace / "students/student/manifest.json").read_text())["results"]
    out = validation_rows(digits.train.keys(), 0.2, 0)
    assert f"leaves out {30 + out.sum()} rows that are validation or test rows of digits" in outcome.out
    assert (results["training_rows"], results["labelled_rows"]) == (2 * 1437 - out.sum(), 0)
    history = (workspace / "students/student/history.csv").read_text().splitlines()
    first = dict(zip(history[0].split(","), history[1].split(","), strict=True))
    assert first["train_accuracy"] == first["hard_loss"] == ""
    assert float(first["train_loss"]) == pytest.approx(float(first["soft_loss"]), rel=1e-6)
    assert "nan" not in outcome.out
    assert f"mlp-30 on {tmp_path / 'pool.npz'}, " in outcome.out
    assert run("plot").code == run("verify").code == run("evaluate").code == 0
    from kdistill.stages.plot import _examples

    soft = SoftTargets(workspace / "soft-targets/soft-targets.h5")
    assert {example.label for example in _examples(soft, transfer_set(soft.manifest, digits))} == {None}
    assert (
        "up to date"
        in run(
            "train-student", "--model", "mlp-30", "--epochs", "3", "--alpha", "0", "--validation-fraction", "0.2"
        ).out
    )


def test_labelled_rows_and_a_larger_pool(run, workspace, digits):
    """The hard part counts on labelled rows only."""
    inputs, labels = digits.train.read(), digits.train.labels
    pool("some.npz", inputs[:400], labels[:400])
    pool("pool.npz", np.roll(inputs, 1, axis=2))
    sets = ["--transfer-set", "some.npz", "--transfer-set", "pool.npz"]
    outcome = run("soften", *sets, "--temperature", "4")
    assert "softens 1,837 rows of " in outcome.out
    assert "400 of them labelled" in outcome.out
    outcome = run("train-student", "--alpha", "0.5", "--model", "mlp-30", "--epochs", "1")
    assert outcome.code == 0, outcome.err
    header, row = (workspace / "students/student/history.csv").read_text().splitlines()
    first = {name: float(value) for name, value in zip(header.split(","), row.split(","), strict=True)}
    share = 400 / 1837
    assert first["train_loss"] == pytest.approx(0.5 * share * first["hard_loss"] + 0.5 * first["soft_loss"], rel=1e-4)
    assert "T = 4, 1,837 rows of 10 classes, 400 labelled" in run("status").out
    pool("pool.npz", np.roll(inputs, 2, axis=2))
    assert "stale" in run("status").out
    remedy = (
        f"kdistill soften --transfer-set {workspace.parent / 'some.npz'} --transfer-set {workspace.parent / 'pool.npz'}"
    )
    assert re.search(
        f"1,437 of the 1,837 training rows .* are not in .*: {remedy} --temperature 4$",
        run("train-student", *QUICK).err,
    )


def test_transfer_set_of_test_rows_alone(run, workspace, digits):
    pool("test.npz", digits.test.read())
    assert run("soften", "--transfer-set", "test.npz").code == 0
    outcome = run("train-student", *QUICK, "--alpha", "0")
    assert (outcome.code, "no row is left to train on" in outcome.err) == (1, True)


@pytest.mark.parametrize("options", [["--dtype", "float16"], ["--top-k", "3"], ["--dtype", "float16", "--top-k", "5"]])
def test_smaller_files(run, workspace, options):
    """Half precision or the k largest: smaller, verified, and a student learns from them at any T, warned if need be."""
    whole, _ = stored(workspace)
    before = (workspace / "soft-targets/soft-targets.h5").stat().st_size
    assert run("soften", *options).code == 0
    logits, soft = stored(workspace)
    assert (workspace / "soft-targets/soft-targets.h5").stat().st_size < before
    np.testing.assert_allclose(soft.file["soft_targets"][()].astype(float).sum(axis=1), 1.0, atol=2e-3)
    np.testing.assert_allclose(np.exp(metrics.log_softmax(logits, 20)).sum(axis=1), 1.0, atol=1e-6)
    if soft.form.top_k is None:
        np.testing.assert_allclose(logits, whole, rtol=1e-3)
    else:
        top = np.argsort(-whole, axis=1)[:, : soft.form.top_k]
        expected = np.exp(metrics.log_softmax(whole, 20))
        found = np.exp(metrics.log_softmax(logits, 20))
        for classes in (top, np.argsort(whole, axis=1)[:, : 10 - soft.form.top_k]):
            given, wanted = (np.take_along_axis(some, classes, axis=1).sum(axis=1) for some in (found, expected))
            np.testing.assert_allclose(given, wanted, rtol=2e-3)
    assert run("verify").code == 0
    outcome = run("train-student", *QUICK, "--temperature", "4")
    assert outcome.code == 0, outcome.err
    assert ("warning" in outcome.err) == (soft.form.top_k is not None)


def test_top_k_keeps_the_mass_of_the_rest():
    """By hand: of four classes the two largest, and the logit that has the others' mass at T."""
    logits = np.log(np.array([[0.1, 0.5, 0.3, 0.1]], np.float32)) * 2
    form = LogitStorage(4, 2.0, "float32", 2)
    kept = form.store(logits)
    np.testing.assert_array_equal(kept.top_classes, [[1, 2]])
    np.testing.assert_allclose(np.exp(metrics.log_softmax(kept.values, 2.0)), [[0.5, 0.3, 0.2]], atol=1e-6)
    np.testing.assert_allclose(np.exp(metrics.log_softmax(kept.dense(), 2.0)), [[0.1, 0.5, 0.3, 0.1]], atol=1e-6)
    from kdistill.training.losses import expand_top_k

    in_step = expand_top_k(kept.values, kept.top_classes.astype(np.int32), classes=4, rest=form.rest)
    np.testing.assert_allclose(in_step, kept.dense(), atol=1e-6)


def test_logits_beyond_half_precision(run, tmp_path, digits):
    np.save(tmp_path / "large.npy", 1e5 * np.eye(10, dtype=np.float32)[digits.train.labels])
    outcome = run("soften", "--logits", "large.npy", *DIGITS, "--dtype", "float16")
    assert (outcome.code, "more than float16 can hold: --dtype float32" in outcome.err) == (1, True)
