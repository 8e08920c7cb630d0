"""Functions and stored outputs as teachers of other tasks than classification: outputs are used as they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import mentions

from kdistill.soft_targets import SoftTargets

MODULE = """
import numpy as np
def one(x):
    return np.abs(x[:, :2]) / np.abs(x[:, :2]).sum(axis=1, keepdims=True)
def two(x):
    return x[:, 2:4]
"""
QUICK = "--model mlp-10 --epochs 1 --xla off".split()


def expected(x):
    one = np.abs(x[:, :2]) / np.abs(x[:, :2]).sum(axis=1, keepdims=True)
    return one, (one + x[:, 2:4]) / 2


@pytest.fixture
def inputs(tmp_path):
    """Write a dataset for each task to the working directory, and return its training inputs."""
    draw = np.random.default_rng(0)
    x = draw.normal(0, 1, (60, 6)).astype(np.float32)
    labels = {"regression": draw.normal(0, 1, (60, 2)), "multi-label": draw.integers(0, 2, (60, 2)), "embedding": None}
    for task, y in labels.items():
        known = {} if y is None else {"y_train": y, "y_test": y[:20]}
        np.savez(tmp_path / f"{task}.npz", x_train=x, x_test=x[:20], **known)
    (tmp_path / "outside.py").write_text(MODULE)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("task", ["regression", "embedding"])
def test_outputs_are_used_as_they_are(run, inputs, task):
    """Also if they could be probabilities; several teachers are averaged by their outputs; files do as well."""
    one, both = expected(inputs)
    options = ["--dataset", f"{task}.npz", "--task", task]
    assert run("soften", "--teacher", "outside:one", *options, "--name", "one").code == 0
    np.testing.assert_allclose(SoftTargets("workspace/soft-targets/one.h5").logits(), one, atol=1e-6)
    teachers = ["--teacher", "outside:one", "--teacher", "outside:two"]
    outcome = run("soften", *teachers, *options)
    assert outcome.code == 0, outcome.err
    np.testing.assert_allclose(SoftTargets("workspace/soft-targets/soft-targets.h5").logits(), both, atol=1e-6)
    np.save("train.npy", both)
    np.save("test.npy", both[:20])
    stored = ["--logits", "train.npy", "--test-logits", "test.npy", *options, "--name", "stored"]
    assert run("soften", *stored).code == 0
    assert run("verify").code == 0
    for name in ("soft-targets", "stored"):
        assert run("train-student", "--soft-targets", name, "--name", name, *QUICK).code == 0
    rows = [row for row in json.loads(run("evaluate", "--json").out) if row["split"] == "test"]
    assert [row["name"] for row in rows] == ["outside:one + outside:two", "train.npy", "soft-targets", "stored"]
    function, file = ({key: value for key, value in row.items() if isinstance(value, float)} for row in rows[:2])
    assert function == pytest.approx(file, rel=1e-5)
    assert run("evaluate").code == 0
    outcome = run("soften", "--teacher", "outside:one", *options, "--teacher-output", "probabilities", "--name", "b")
    assert (outcome.code, mentions(outcome.err, "outside:one", "--teacher-output logits")) == (1, True)
