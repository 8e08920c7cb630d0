"""Several teachers are averaged, and networks whose logits no student could learn from are refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import QUICK, mentions

from kdistill.backend import tf
from kdistill.evaluation import metrics
from kdistill.soft_targets import SoftTargets

DIGITS = ["--dataset", "digits"]


def soft_targets(name="soft-targets"):
    return SoftTargets(f"workspace/soft-targets/{name}.h5")


@pytest.mark.slow
def test_means_of_several_teachers(run):
    """The arithmetic mean is of probabilities at T, the geometric mean of logits; only the former is exact at one T."""
    teachers = ("t1", "t2", "t3")
    for seed, name in enumerate(teachers):
        assert run("train-teacher", "--name", name, "--seed", seed, *QUICK).code == 0
        assert run("soften", "--teacher", name, "--name", f"of-{name}").code == 0
    options = [part for name in teachers for part in ("--teacher", name)] + ["--temperature", "3"]
    outcome = run("soften", *options)
    assert mentions(outcome.out, *teachers, "arithmetic")
    assert run("soften", *options, "--mean", "geometric", "--name", "geometric").code == 0
    each = [soft_targets(f"of-{name}").logits() for name in teachers]
    soft = soft_targets()
    mean = soft.logits()
    expected = np.mean([np.exp(metrics.log_softmax(logits, 3.0)) for logits in each], axis=0)
    np.testing.assert_allclose(np.exp(metrics.log_softmax(mean, 3.0)), expected, atol=1e-6)
    np.testing.assert_allclose(mean.mean(axis=1), 0, atol=1e-4)  # else --loss mse would match little but the mean
    np.testing.assert_allclose(soft_targets("geometric").logits(), np.mean(each, axis=0), atol=1e-5)
    assert soft.teacher == "t1, t2, t3"
    assert run("verify").code == 0
    student = run("train-student", *QUICK, "--temperature", "5")
    assert mentions(student.err, "warning", 3, 5)
    assert "warning" not in run("train-student", *QUICK, "--soft-targets", "geometric", "--temperature", "5").err
    assert mentions(run("evaluate").out, "t1 + t2 + t3")


class NaNForSomeRows(tf.Module):
    """A network that gives NaN for every row with a certain sum of pixels."""

    def __init__(self, total):
        super().__init__()
        self.total = tf.constant(total, tf.int64)

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28), tf.uint8)])
    def serve(self, inputs):
        totals = tf.reduce_sum(tf.cast(inputs, tf.int64), (1, 2))
        logits = tf.cast(inputs, tf.float32)[:, 14, 9:19]
        return tf.where(totals[:, None] == self.total, np.float32(np.nan), logits)


@pytest.mark.parametrize("kind", ["network", "ensemble", "views"])
def test_unusable_logits_are_refused(run, tmp_path, linear, digits, kind):
    """The message names the network and the first row, and nothing is left behind."""
    totals = digits.train.read().sum(axis=(1, 2), dtype=int)
    network = NaNForSomeRows(totals[1300])
    tf.saved_model.save(network, tmp_path / "net", signatures=network.serve)
    options = {
        "network": [],
        "ensemble": ["--teacher", linear[0] / "one"],
        "views": ["--augment", "shift:1", "--views", "2"],
    }[kind]
    outcome = run("soften", "--teacher", "./net", *options, *DIGITS, "--batch-size", "300")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert mentions(outcome.err, tmp_path / "net", f"row {np.argmax(totals == totals[1300])}")
    assert not (tmp_path / "workspace").exists()
