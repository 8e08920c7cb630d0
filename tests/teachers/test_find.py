"""Teachers from outside: SavedModels and `.keras` files, and everything that is refused as one."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from helpers import QUICK, mentions

from kdistill.backend import keras
from kdistill.evaluation import metrics
from kdistill.soft_targets import SoftTargets

DIGITS = ["--dataset", "digits"]


def soft_targets(name="soft-targets"):
    return SoftTargets(f"workspace/soft-targets/{name}.h5")


@pytest.mark.slow
def test_saved_model_of_plain_tensorflow(run, linear, digits):
    """Its logits are stored, students learn from them, and both are measured, verified and up to date."""
    place, network = linear
    outcome = run("soften", "--teacher", place / "one", *DIGITS, "--temperature", "4")
    assert outcome.code == 0, outcome.err
    soft = soft_targets()
    np.testing.assert_allclose(soft.logits(), network.logits(np.float32(digits.train.read()) / 255), atol=1e-4)
    assert soft.teacher == str(place / "one")
    assert mentions(outcome.out, "--model mlp-800", "--alpha 0.1")
    missing = run("train-student")
    assert (missing.code, mentions(missing.err, "--model")) == (2, True)
    assert run("train-student", *QUICK).code == 0
    table = json.loads(run("evaluate", "--json").out)
    assert [(row["name"], row["role"]) for row in table][::2] == [("one", "teacher"), ("student", "student")]
    assert 0 < table[3]["agreement"] < 1
    assert table[0]["parameters"] is None
    assert run("verify").code == 0
    assert run("soften", "--teacher", place / "one", *DIGITS, "--temperature", "4").up_to_date
    status = json.loads(run("status", "--json").out)
    assert status["artifacts"][0]["state"] == "fresh"
    assert status["next"] == "kdistill plot"


def test_soft_targets_of_a_changed_teacher_are_stale(run, changing_teacher):
    """`status` names the teacher and the command that writes the soft targets again."""
    path, change = changing_teacher
    assert run("soften", "--teacher", "./net", *DIGITS).code == 0
    change()
    status = json.loads(run("status", "--json").out)
    (artifact,) = status["artifacts"]
    assert artifact["state"] == "stale"
    assert str(path) in artifact["reasons"][0]
    assert artifact["command"] == f"kdistill soften --teacher {path} --dataset digits"
    assert status["next"] == artifact["command"]


@pytest.mark.slow
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
def test_signatures_outputs_and_scales(run, linear, digits, options, scale):
    """The chosen signature and output are read, with inputs scaled as it needs them."""
    place, network = linear
    outcome = run("soften", "--teacher", place / "many", *DIGITS, *options)
    assert outcome.code == 0, outcome.err
    expected = network.logits(np.float32(digits.train.read()) * np.float32(scale)).numpy()
    if "probabilities" in options:
        expected = metrics.log_softmax(expected)
        expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(soft_targets().logits(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_keras_file_with_a_softmax(run, tmp_path, digits):
    """The logarithms of its probabilities are stored; with --teacher-output logits its outputs are stored as they are."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
    net.save(tmp_path / "net.keras")
    assert run("soften", "--teacher", "net.keras", *DIGITS).code == 0
    outputs = net.predict(np.float32(digits.train.read()) / 255, verbose=0)
    np.testing.assert_allclose(np.exp(metrics.log_softmax(soft_targets().logits())), outputs, atol=1e-5)
    run("soften", "--teacher", "net.keras", *DIGITS, "--teacher-output", "logits", "--name", "as-logits")
    np.testing.assert_allclose(soft_targets("as-logits").logits(), outputs, atol=1e-5)


@pytest.fixture
def bad_files(tmp_path, linear, digits):
    """Write files and directories into the working directory that cannot be used as they are."""
    wide = np.zeros((20, 32, 32), np.uint8)
    labels = np.arange(20) % 10
    np.savez(tmp_path / "wide.npz", x_train=wide, y_train=labels, x_test=wide, y_test=labels)
    (tmp_path / "broken.keras").write_text("hello")
    shutil.copytree(linear[0] / "one", tmp_path / "cut")
    os.truncate(tmp_path / "cut/variables/variables.data-00000-of-00001", 1000)
    (tmp_path / "folder").mkdir()
    for name in ("model.onnx", "model.pt", "forest.joblib", "net.weights.h5", "net.h5"):
        (tmp_path / "folder" / name).write_text("hello")
    for ending in ("keras", "onnx"):
        os.mkfifo(tmp_path / f"folder/pipe.{ending}")
    np.save(tmp_path / "few.npy", np.zeros((5, 10), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--teacher", "nosuch", *DIGITS], 1, ["nosuch", "kdistill train-teacher"]),
        (["--teacher", "./nosuch", *DIGITS], 1, ["--teacher", "./nosuch", "workspace"]),
        (["--teacher", "nosuch.keras", *DIGITS], 1, ["--teacher", "nosuch.keras"]),
        (["--teacher", "PLACE", *DIGITS], 1, ["--teacher PLACE", "saved_model.pb", ".keras", "--logits"]),
        (["--teacher", "PLACE/one"], 2, ["--dataset"]),
        (["--teacher", "PLACE/none", *DIGITS], 1, ["PLACE/none", "signatures"]),
        (["--teacher", "PLACE/many", *DIGITS], 1, ["a, b, bytes, hundred", "--signature"]),
        (["--teacher", "PLACE/many", *DIGITS, "--signature", "c"], 1, ["PLACE/many", "'c'", "a, b"]),
        (["--teacher", "PLACE/many", *DIGITS, "--signature", "b"], 1, ["features, probabilities", "--output"]),
        (["--teacher", "PLACE/three", *DIGITS], 1, ["PLACE/three", 3, 10, "digits"]),
        (["--teacher", "PLACE/one", "--dataset", "wide.npz"], 1, ["(28, 28)", "(32, 32)", "wide.npz"]),
        (["--teacher", "PLACE/one", "--teacher", "PLACE/one", *DIGITS], 2, ["--teacher", "PLACE/one"]),
        (["--teacher", "a\nb", *DIGITS], 2, ["--teacher", "'a\\nb'"]),
        (["--teacher", "cut", *DIGITS], 1, ["cut"]),
        (["--teacher", "broken.keras", *DIGITS], 1, ["broken.keras"]),
        (["--teacher", "PLACE/one", *DIGITS, "--top-k", "10"], 2, ["--top-k", 10, "digits"]),
        (["--teacher", "PLACE/one", *DIGITS, "--top-k", "0"], 2, ["--top-k", 0]),
        (["--teacher", "PLACE/one", *DIGITS, "--transfer-set", "wide.npz"], 1, ["(28, 28)", "(32, 32)", "wide.npz"]),
        (["--teacher", "PLACE/one", *DIGITS, "--transfer-set", "nosuch"], 1, ["--transfer-set", "nosuch"]),
        (["--teacher", "PLACE/one", *DIGITS, "--teacher-output", "probabilities"], 1, ["--teacher-output logits"]),
        (["--teacher", "PLACE/one", "--logits", "few.npy", *DIGITS], 2, ["--logits", "--teacher"]),
        (["--teacher", "PLACE/one", *DIGITS, *2 * ["--transfer-set", "digits"]], 2, ["--transfer-set", "digits"]),
        (["--teacher", "folder/pipe.keras", *DIGITS], 1, ["--teacher folder/pipe.keras"]),
        (["--teacher", "folder/model.onnx", *DIGITS], 1, ["folder/model.onnx"]),
        (["--teacher", "folder/pipe.onnx", *DIGITS], 1, ["--teacher folder/pipe.onnx"]),
        (
            ["--teacher", "folder/model.pt", *DIGITS],
            1,
            ["folder/model.pt", "--teacher MODULE:FUNCTION", "--logits logits.npz"],
        ),
        (["--teacher", "folder/forest.joblib", *DIGITS], 1, ["folder/forest.joblib", "--logits logits.npz"]),
        (
            ["--teacher", "folder/net.weights.h5", *DIGITS],
            1,
            ["kdistill train-teacher --model MODEL --weights folder/net.weights.h5"],
        ),
        (["--teacher", "folder/net.h5", *DIGITS], 1, ["--logits folder/net.h5"]),
        (["--teacher", "few.npy", *DIGITS], 1, ["--logits few.npy"]),
    ],
)
@pytest.mark.usefixtures("bad_files")
def test_bad_teachers_are_refused_in_one_line(run, tmp_path, linear, options, code, words):
    """Exit status, and a single line with the option, the value and what to pass instead; nothing is written."""
    options, words = ([str(item).replace("PLACE", str(linear[0])) for item in items] for items in (options, words))
    outcome = run("soften", *options)
    assert outcome.code == code
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert mentions(outcome.err, *words), outcome.err
    assert not (tmp_path / "workspace/soft-targets").exists()
