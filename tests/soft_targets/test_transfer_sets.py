"""Transfer sets of other rows than the training rows, with and without labels, and smaller files of soft targets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import QUICK, mentions

from kdistill.data.keys import validation_rows
from kdistill.evaluation import metrics
from kdistill.soft_targets import SoftTargets, transfer_set

STUDENT = ["train-student", "--model", "mlp-30", "--xla", "off"]


def history(workspace):
    """Return the first epoch of the student's history."""
    header, first = (workspace / "students/student/history.csv").read_text().splitlines()[:2]
    return dict(zip(header.split(","), first.split(","), strict=True))


@pytest.mark.slow
def test_unlabeled_transfer_set(run, workspace, digits):
    """Students learn from it with --alpha 0 only; its rows that are test or validation rows are left out."""
    inputs = digits.train.read()
    other = np.roll(inputs, 1, axis=2)  # rows that the dataset does not have
    np.savez("pool.npz", x_train=np.concatenate([other, digits.test.read()[:30], inputs]))
    outcome = run("soften", "--transfer-set", "pool.npz")
    assert outcome.code == 0, outcome.err
    assert mentions(outcome.out.splitlines()[-1], "--alpha 0")
    refused = run("train-student", *QUICK)
    assert (refused.code, mentions(refused.err, "--alpha 0")) == (1, True)
    command = [*STUDENT, "--epochs", "3", "--alpha", "0", "--validation-fraction", "0.2"]
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    results = json.loads((workspace / "students/student/manifest.json").read_text())["results"]
    held_out = validation_rows(digits.train.keys(), 0.2, 0).sum()
    assert mentions(outcome.out, 30 + held_out, "digits")
    assert (results["training_rows"], results["labeled_rows"]) == (2 * 1437 - held_out, 0)
    first = history(workspace)
    assert first["train_accuracy"] == first["hard_loss"] == ""
    assert float(first["train_loss"]) == pytest.approx(float(first["soft_loss"]), rel=1e-6)
    assert "nan" not in outcome.out
    assert run("plot").code == run("verify").code == run("evaluate").code == 0
    assert run(*command).up_to_date
    rows = transfer_set(SoftTargets("workspace/soft-targets/soft-targets.h5").manifest, digits)
    assert (len(rows), rows.labeled_rows) == (2 * 1437 + 30, 0)


@pytest.mark.slow
def test_labeled_and_unlabeled_transfer_sets(run, workspace, digits):
    """The hard part of the loss counts labeled rows only; a transfer set that changes makes the soft targets stale."""
    inputs, labels = digits.train.read(), digits.train.labels
    np.savez("some.npz", x_train=inputs[:400], y_train=labels[:400])
    np.savez("pool.npz", x_train=np.roll(inputs, 1, axis=2))
    outcome = run("soften", "--transfer-set", "some.npz", "--transfer-set", "pool.npz", "--temperature", "4")
    assert mentions(outcome.out, "1,837", 400)
    outcome = run(*STUDENT, "--alpha", "0.5", "--epochs", "1")
    assert outcome.code == 0, outcome.err
    total, hard, soft = (float(history(workspace)[name]) for name in ("train_loss", "hard_loss", "soft_loss"))
    assert total == pytest.approx(0.5 * 400 / 1837 * hard + 0.5 * soft, rel=1e-4)
    np.savez("pool.npz", x_train=np.roll(inputs, 2, axis=2))
    place = workspace.parent
    remedy = f"kdistill soften --temperature 4 --transfer-set {place}/some.npz --transfer-set {place}/pool.npz"
    soft_targets = next(
        artifact
        for artifact in json.loads(run("status", "--json").out)["artifacts"]
        if artifact["name"] == "soft-targets"
    )
    assert (soft_targets["state"], soft_targets["command"]) == ("stale", remedy)
    refused = run("train-student", *QUICK)
    assert refused.code == 1
    assert mentions(refused.err.splitlines()[-1], "1,437", "1,837", remedy)


def test_transfer_set_of_test_rows_only(run, workspace, digits):
    """No row is left to train on."""
    np.savez("test.npz", x_train=digits.test.read())
    assert run("soften", "--transfer-set", "test.npz").code == 0
    outcome = run("train-student", *QUICK, "--alpha", "0")
    assert outcome.code == 1
    assert mentions(outcome.err, "error", "digits")


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--dtype", "float16"], ["--top-k", "3"], ["--dtype", "float16", "--top-k", "5"]])
def test_smaller_files(run, workspace, options):
    """Half precision and the top k give a smaller file, from which students learn; at another T the top k are warned of."""
    path = workspace / "soft-targets/soft-targets.h5"
    before, size = SoftTargets(path).logits(), path.stat().st_size
    assert run("soften", *options).code == 0
    soft = SoftTargets(path)
    logits, top_k = soft.logits(), soft.storage.top_k
    assert path.stat().st_size < size
    np.testing.assert_allclose(soft.file["soft_targets"][()].astype(float).sum(axis=1), 1.0, atol=2e-3)
    if top_k is None:
        np.testing.assert_allclose(logits, before, rtol=1e-3)
    else:
        order = np.argsort(-before, axis=1)
        stored, expected = (np.exp(metrics.log_softmax(each, 20)) for each in (logits, before))
        for classes in (order[:, :top_k], order[:, top_k:]):
            mass, wanted = (np.take_along_axis(each, classes, axis=1).sum(axis=1) for each in (stored, expected))
            np.testing.assert_allclose(mass, wanted, rtol=2e-3)
    assert run("verify").code == 0
    outcome = run("train-student", *QUICK, "--temperature", "4")
    assert outcome.code == 0, outcome.err
    assert ("warning" in outcome.err) == (top_k is not None)


def test_logits_beyond_half_precision(run, digits):
    """`soften` refuses them with the option that stores them."""
    np.save("large.npy", 1e5 * np.eye(10, dtype=np.float32)[digits.train.labels])
    outcome = run("soften", "--logits", "large.npy", "--dataset", "digits", "--dtype", "float16")
    assert outcome.code == 1
    assert mentions(outcome.err, "row 0", "--dtype float32")
