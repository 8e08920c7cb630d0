"""All stages on multi-label data, regression and embeddings, from small files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import QUICK, mentions, results_of, succeed

from kdistill.soft_targets import SoftTargets

DRAW = np.random.default_rng(3)
X = DRAW.normal(0, 1, (400, 6)).astype(np.float32)
HIDDEN = np.tanh(X @ DRAW.normal(0, 1, (6, 4)))
LABELS = {
    "multi-label": (HIDDEN > 0.2).astype(np.int8),
    "regression": (5e4 * HIDDEN[:, :2] + 2e5).astype(np.float32),
}
TRAIN = ("--model", "mlp-16", "--batch-size", "20", "--epochs", "12", "--learning-rate", "0.01", "--xla", "off")
SWEEP = {"multi-label": ["--temperature", "1"], "regression": []}
HEADLINES = {"multi-label": ("map", 0.8), "regression": ("r2", 0.8)}


def save(name, labels, **more):
    arrays = {"x_train": X[:300], "y_train": labels[:300], "x_test": X[300:], "y_test": labels[300:], **more}
    np.savez(name, **{key: value for key, value in arrays.items() if value is not None})


@pytest.mark.slow
@pytest.mark.parametrize("task", LABELS)
def test_all_stages(run, tmp_path, task):
    """Teacher, soft targets, students, sweep, export, pictures and checks, each up to date when it is run again."""
    save("data.npz", LABELS[task])
    commands = [
        ["train-teacher", "--dataset", "data.npz", *TRAIN],
        ["soften", "--temperature", "2"],
        ["train-student", *TRAIN, "--alpha", "0.3", "--validation-fraction", "0.2"],
        ["train-student", *TRAIN, "--alpha", "1", "--name", "hard"],
        ["plot"],
        ["export"],
        ["sweep", *TRAIN, "--seeds", "0,1", "--controls", "--validation-fraction", "0.2", *SWEEP[task]],
    ]
    for command in commands:
        succeed(run, *command)
        assert run(*command).up_to_date, command
    measure, least = HEADLINES[task]
    for network in ("teachers/teacher", "students/student", "students/hard"):
        results = results_of(tmp_path / "workspace" / network)
        assert results["task"] == task
        assert results[f"test_{measure}"] > least, network
    measured = json.loads(succeed(run, "evaluate", "--json").out)
    student = next(each for each in measured if (each["name"], each["split"]) == ("student", "test"))
    assert student[measure] == pytest.approx(results_of(tmp_path / "workspace/students/student")[f"test_{measure}"])
    assert (tmp_path / "workspace/plots/learning-curves.png").exists()
    assert "problem" in succeed(run, "verify").out
    assert all(each["state"] == "fresh" for each in json.loads(run("status", "--json").out)["artifacts"])


@pytest.mark.slow
@pytest.mark.parametrize("task", LABELS)
def test_soft_target_file(run, tmp_path, task):
    """The file has the labels of the task, the teacher's outputs in the unit of the data, and its soft targets."""
    save("data.npz", LABELS[task])
    succeed(run, "train-teacher", "--dataset", "data.npz", *TRAIN)
    succeed(run, "soften", "--temperature", "2")
    soft = SoftTargets(tmp_path / "workspace/soft-targets/soft-targets.h5")
    assert (soft.task.name, soft.classes) == (task, LABELS[task].shape[1])
    np.testing.assert_array_equal(soft.labels, LABELS[task][:300])
    outputs = soft.logits()
    assert ("soft_targets" in soft.file) == (task == "multi-label")
    if task == "multi-label":
        np.testing.assert_allclose(soft.soft_targets(), 1 / (1 + np.exp(-outputs / 2)), rtol=1e-5)
    else:
        assert np.corrcoef(outputs[:, 0], soft.labels[:, 0])[0, 1] > 0.9
        assert abs(outputs.mean() - 2e5) < 2e4
    shifted = {"x_train": X[:300], "y_train": np.roll(LABELS[task][:300], 1, axis=0)}
    save("data.npz", LABELS[task], **shifted)
    outcome = run("train-student", *TRAIN, "--alpha", "0.5", "--dataset", "data.npz")
    assert outcome.code != 0
    assert mentions(outcome.err, "soft-targets.h5", "kdistill soften")


@pytest.mark.slow
@pytest.mark.parametrize("width", [None, 3])
def test_embedding(run, tmp_path, width):
    """A student learns a teacher's vectors of equal or other width without labels; labels only measure it."""
    from kdistill.backend import keras

    layers = [keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(5)]
    keras.utils.set_random_seed(1)
    keras.Sequential(layers).save("vectors.keras")
    save("data.npz", (HIDDEN[:, 0] > 0).astype(int))
    succeed(run, "soften", "--dataset", "data.npz", "--task", "embedding", "--teacher", "vectors.keras")
    options = [] if width is None else ["--embedding-size", str(width)]
    train = ["train-student", *TRAIN, "--validation-fraction", "0.2", *options]
    succeed(run, *train)
    assert run(*train).up_to_date
    results = results_of(tmp_path / "workspace/students/student")
    assert results["validation_cosine"] > 0.9
    measured = json.loads(succeed(run, "evaluate", "--json").out)
    student = next(each for each in measured if (each["name"], each["split"]) == ("student", "test"))
    assert (student["cosine"] is None) == (width is not None)
    assert student["probe_accuracy"] > 0.6
    assert student["neighbor_agreement"] > 0.1
    succeed(run, "plot")
    assert "problem" in succeed(run, "verify").out
    sweep = succeed(run, "sweep", *TRAIN, "--validation-fraction", "0.2", "--loss", "cosine,mse", "--seeds", "0,1")
    assert mentions(sweep.out, "cosine", "mse")


def test_embedding_without_labels(run, tmp_path):
    """Data without any label can be read for the task `embedding` only."""
    np.savez("data.npz", x_train=X[:300], x_test=X[300:])
    assert mentions(run("train-teacher", "--dataset", "data.npz").err, "data.npz", "--task embedding")
    outcome = run("train-teacher", "--dataset", "data.npz", "--task", "embedding")
    assert outcome.code == 1
    assert mentions(outcome.err, "embedding", "kdistill soften")
    assert not (tmp_path / "workspace").exists() or not any((tmp_path / "workspace").rglob("manifest.json"))


@pytest.mark.slow
def test_options_of_another_task(run, workspace):
    """Options and commands that do not apply to a task are refused in one line, with nothing written."""
    save("data.npz", LABELS["regression"])
    succeed(run, "train-teacher", "--dataset", "data.npz", *TRAIN, "--name", "values")
    succeed(run, "soften", "--teacher", "values", "--name", "values")
    succeed(run, "train-student", *TRAIN, "--soft-targets", "values", "--name", "values")
    for command, named in (
        (["soften", "--teacher", "values", "--top-k", "1", "--name", "top"], "--top-k"),
        (["train-student", "--soft-targets", "values", "--loss", "dkd", "--name", "x"], "--loss dkd"),
        (["train-student", "--soft-targets", "values", "--temperature", "3", "--name", "x"], "--temperature"),
        (["train-student", "--soft-targets", "values", "--omit-class", "3", "--name", "x"], "--omit-class"),
        (["train-student", "--soft-targets", "values", "--embedding-size", "3", "--name", "x"], "--embedding-size"),
        (["train-student", "--soft-targets", "values", "--dataset", "digits", "--name", "x"], "digits"),
        (["correct-bias", "--student", "values"], "regression"),
        (
            ["train-teacher", *QUICK, "--dataset", "data.npz", "--label-smoothing", "0.1", "--name", "x"],
            "--label-smoothing",
        ),
    ):
        outcome = run(*command)
        assert outcome.code != 0, command
        assert len(outcome.err.strip().splitlines()) == 1, outcome.err
        assert mentions(outcome.err, named), outcome.err
    assert not list(workspace.glob("*/x*"))
