"""The losses of multi-label data, regression and embeddings against their formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill.backend import tf
from kdistill.errors import UsageError
from kdistill.settings import EMBEDDING, LOSSES, MULTI_LABEL, REGRESSION, TASKS, Objective
from kdistill.training.losses import hard_part, losses_of, soft_part


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def bernoulli_kl(teacher, student, temperature):
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    return temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1)


def huber(teacher, student):
    distance = np.abs(teacher - student)
    return np.where(distance <= 1, distance**2, 2 * distance - 1).mean(axis=1)


def cosine_distance(teacher, student):
    lengths = np.linalg.norm(teacher, axis=1) * np.linalg.norm(student, axis=1)
    return 1 - (teacher * student).sum(axis=1) / lengths


SOFT = {
    (MULTI_LABEL, "kd"): bernoulli_kl,
    (MULTI_LABEL, "mse"): lambda teacher, student, _: ((teacher - student) ** 2).mean(axis=1) / 2,
    (REGRESSION, "mse"): lambda teacher, student, _: ((teacher - student) ** 2).mean(axis=1),
    (REGRESSION, "huber"): lambda teacher, student, _: huber(teacher, student),
    (EMBEDDING, "cosine"): lambda teacher, student, _: cosine_distance(teacher, student),
    (EMBEDDING, "mse"): lambda teacher, student, _: ((teacher - student) ** 2).mean(axis=1),
}


@pytest.fixture
def outputs():
    draw = np.random.default_rng(7)
    return draw.normal(0, 2, (64, 5)), draw.normal(0, 2, (64, 5))


def test_every_loss_has_a_definition():
    """Each loss that the catalog lists for a task is tested here; those of classification are tested elsewhere."""
    listed = {(task, name) for name, loss in LOSSES.items() for task in loss.formulas}
    assert {pair for pair in listed if pair[0] != "classification"} == set(SOFT)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("task", "name"), SOFT)
def test_soft_part_is_its_formula(outputs, task, name, temperature):
    """Each row has the value of the formula, in float64 to 1e-6, and 0 where the student equals the teacher."""
    teacher, student = outputs
    objective = Objective(loss=name)
    loss = soft_part(task, objective, None, teacher, student, temperature=temperature).numpy()
    np.testing.assert_allclose(loss, SOFT[task, name](teacher, student, temperature), rtol=1e-6)
    equal = soft_part(task, objective, None, teacher, teacher, temperature=temperature).numpy()
    np.testing.assert_allclose(equal, 0, atol=1e-12)


@pytest.mark.parametrize(("task", "name"), SOFT)
def test_gradient_is_the_slope(outputs, task, name):
    """The gradient of the mean is the slope of the formula, by central differences."""
    teacher, student = (each[:8] for each in outputs)
    with tf.GradientTape() as tape:
        variable = tf.Variable(student)
        loss = tf.reduce_mean(soft_part(task, Objective(loss=name), None, teacher, variable, temperature=2.0))
    gradient = tape.gradient(loss, variable).numpy()
    for row, column in ((0, 0), (3, 4), (7, 2)):
        step = np.zeros_like(student)
        step[row, column] = 1e-5
        above, below = (SOFT[task, name](teacher, student + sign * step, 2.0).mean() for sign in (1, -1))
        assert gradient[row, column] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-8)


def test_multi_label_gradient_at_high_temperature(outputs):
    """For large T the gradient of a row tends to (student - teacher) / 4."""
    teacher, student = outputs
    with tf.GradientTape() as tape:
        variable = tf.Variable(student)
        loss = soft_part(MULTI_LABEL, Objective(loss="kd"), None, teacher, variable, temperature=1e3)
    np.testing.assert_allclose(tape.gradient(loss, variable), (student - teacher) / 4, rtol=1e-3, atol=1e-4)


def test_binary_cross_entropy_leaves_out_missing_labels(outputs):
    """Labels below 0 do not count, and a row without any has a loss of 0."""
    _, student = outputs
    labels = np.random.default_rng(0).integers(0, 2, student.shape)
    labels[0], labels[1, 2:] = -1, -1
    p = sigmoid(student)
    each = np.where(labels >= 0, -np.where(labels == 1, np.log(p), np.log(1 - p)), 0)
    loss = hard_part(MULTI_LABEL, Objective(alpha=1.0), labels, student).numpy()
    np.testing.assert_allclose(loss, each.sum(axis=1), rtol=1e-6)
    assert loss[0] == 0
    right = losses_of(MULTI_LABEL).label_accuracy(labels, student).numpy()
    assert right[1] == pytest.approx(((student[1, :2] > 0) == labels[1, :2]).mean())


def test_squared_error_leaves_out_missing_numbers(outputs):
    """NaN does not count, and gives no NaN in the gradient."""
    labels, student = (np.array(each, np.float32) for each in outputs)
    labels[0], labels[1, 1:] = np.nan, np.nan
    with tf.GradientTape() as tape:
        variable = tf.Variable(student)
        loss = hard_part(REGRESSION, Objective(alpha=1.0), labels, variable)
    expected = np.nan_to_num(np.nanmean((labels - student)[1:] ** 2, axis=1))
    np.testing.assert_allclose(loss[1:], expected, rtol=1e-5)
    assert loss[0].numpy() == 0
    gradient = tape.gradient(loss, variable).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[0] == 0).all()
    assert (gradient[1, 1:] == 0).all()


def test_task_without_hard_part(outputs):
    """Embeddings have no hard labels: alpha is 0, and --alpha 1 is refused."""
    assert [name for name, task in TASKS.items() if not task.hard_part] == [EMBEDDING]
    assert Objective().for_task(EMBEDDING) == Objective(alpha=0.0, loss="cosine")
    with pytest.raises(UsageError, match="--alpha 1"):
        Objective(alpha=1.0).for_task(EMBEDDING)
    assert not hard_part(EMBEDDING, Objective(alpha=0.0), None, tf.constant(outputs[0])).numpy().any()


@pytest.mark.parametrize(
    ("task", "options", "named"),
    [
        (REGRESSION, {"loss": "kd"}, "--loss kd"),
        (MULTI_LABEL, {"loss": "huber"}, "--loss huber"),
        (MULTI_LABEL, {"standardize_logits": True}, "--standardize-logits"),
        (REGRESSION, {"label_smoothing": 0.1}, "--label-smoothing"),
    ],
)
def test_options_that_do_not_apply(task, options, named):
    """Options that do not apply to a task are refused, with the option."""
    with pytest.raises(UsageError, match=named):
        Objective(**options).for_task(task)
