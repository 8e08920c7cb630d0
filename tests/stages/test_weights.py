"""Weights of rows and of classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import mentions

DRAW = np.random.default_rng(1)
X = DRAW.normal(0, 1, (60, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0.7).astype(int)
WEIGHTS = np.where(np.arange(60) % 3 == 0, 2.0, 1.0)
WEIGHTS[7] = 0
ONE_BATCH = ("--model", "mlp-4", "--optimizer", "sgd", "--learning-rate", "0.1", "--epochs", "3", "--xla", "off")


def save(name, rows=slice(None), **more):
    np.savez(name, x_train=X[rows], y_train=Y[rows], x_test=X[:20], y_test=Y[:20], **more)


def trained(run, path, name, *options):
    """Train a teacher in batches of all rows, and return its weights."""
    from kdistill.networks.loading import load_network
    from kdistill.workspace import Workspace

    outcome = run("train-teacher", "--name", name, *ONE_BATCH, *options)
    assert outcome.code == 0, outcome.err
    _, network = load_network(Workspace(path / "workspace").teacher(name))
    return [variable.numpy() for variable in network.loaded.weights]


def same(one, two):
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(one, two, strict=True))


@pytest.mark.slow
def test_weights_are_like_repeated_rows(run, tmp_path):
    """A row of weight 2 counts as two rows, and one of weight 0 as none; scaling all weights changes nothing."""
    rows = np.repeat(np.arange(60), WEIGHTS.astype(int))
    save("weights.npz", weights=WEIGHTS)
    save("scaled.npz", weights=7 * WEIGHTS)
    save("repeated.npz", rows)
    save("plain.npz")
    weighted = trained(run, tmp_path, "weights", "--dataset", "weights.npz", "--batch-size", "60")
    assert same(weighted, trained(run, tmp_path, "scaled", "--dataset", "scaled.npz", "--batch-size", "60"))
    repeated = trained(run, tmp_path, "repeated", "--dataset", "repeated.npz", "--batch-size", str(len(rows)))
    assert same(weighted, repeated)
    plain = trained(run, tmp_path, "plain", "--dataset", "plain.npz", "--batch-size", "60")
    assert not same(weighted, plain)
    balanced = np.where(Y == 1, len(Y) / Y.sum(), len(Y) / (len(Y) - Y.sum()))
    save("balanced.npz", weights=balanced)
    by_hand = trained(run, tmp_path, "by-hand", "--dataset", "balanced.npz", "--batch-size", "60")
    options = ["--dataset", "plain.npz", "--batch-size", "60", "--class-weights", "balanced"]
    assert same(by_hand, trained(run, tmp_path, "balanced", *options))
    assert not same(by_hand, plain)


@pytest.mark.slow
def test_weights_of_a_student(run, tmp_path):
    """Soft parts are weighted too, streamed rows as those in memory, and a column of a table is no input then."""
    text = "\n".join(
        ["a,b,c,d,e,w,label", *(",".join(map(str, [*row, w, y])) for row, w, y in zip(X, WEIGHTS, Y, strict=True))]
    )
    (tmp_path / "table.csv").write_text(text)
    table = ["--dataset", "table.csv", "--row-weights", "w", "--test-fraction", "0.3"]
    assert run("train-teacher", *ONE_BATCH, *table, "--batch-size", "8").code == 0
    manifest = json.loads((tmp_path / "workspace/teachers/teacher/manifest.json").read_text())
    assert manifest["results"]["preprocessing"]["table"]["inputs"] == list("abcde")
    assert run("soften").code == 0
    save("plain.npz")
    losses = []
    for name, options in (("weighted", []), ("plain", ["--dataset", "table.csv?inputs=a,b,c,d,e&test-fraction=0.3"])):
        outcome = run("train-student", "--name", name, "--alpha", "0", *ONE_BATCH, "--batch-size", "8", *options)
        assert outcome.code == 0, outcome.err
        losses.append((tmp_path / f"workspace/students/{name}/history.csv").read_text().splitlines()[1].split(",")[1])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (np.where(np.arange(60) == 4, -1.0, 1.0), ["row 4", -1.0]),
        (np.where(np.arange(60) == 4, np.nan, 1.0), ["row 4", "nan"]),
        (np.zeros(60), ["weights"]),
        (np.ones((60, 2)), ["weights", "(60, 2)"]),
        (np.ones(59), ["weights", "(59,)"]),
    ],
)
def test_bad_weights(run, weights, expected):
    """Weights that cannot be used are refused with the row or the shape."""
    save("data.npz", weights=weights)
    outcome = run("train-teacher", "--dataset", "data.npz", *ONE_BATCH)
    assert outcome.code == 1
    assert mentions(outcome.err, "data.npz", *expected)


def test_balance_without_classes(run):
    """Numbers have no classes to balance."""
    np.savez("data.npz", x_train=X, y_train=X[:, 0] * 1.5, x_test=X, y_test=X[:, 1])
    outcome = run("train-teacher", "--dataset", "data.npz", *ONE_BATCH, "--class-weights", "balanced")
    assert outcome.code == 2
    assert mentions(outcome.err, "--class-weights", "regression")
