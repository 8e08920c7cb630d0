"""The objective against its formula, written again in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill import losses
from kdistill.backend import keras, tf


def softmax(logits: np.ndarray) -> np.ndarray:
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def formula(labels, teacher, student, temperature, alpha):
    """The design's formula, in float64, as it stands there."""
    p, q, one = softmax(teacher / temperature), softmax(student / temperature), softmax(student)
    soft = (p * (np.log(p) - np.log(q))).sum(axis=1)
    return alpha * -np.log(one[np.arange(len(labels)), labels]) + (1 - alpha) * temperature**2 * soft


@pytest.fixture
def batch():
    draw = np.random.default_rng(7)
    return draw.integers(0, 10, 64), draw.normal(0, 4, (64, 10)), draw.normal(0, 4, (64, 10))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_is_the_formula(batch, temperature, alpha):
    """Every row equals the formula to 1e-6, T^2 and all, at any T and alpha."""
    labels, teacher, student = batch
    found = losses.distillation_loss(labels, teacher, student, temperature=temperature, alpha=alpha)
    np.testing.assert_allclose(found, formula(labels, teacher, student, temperature, alpha), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_float32_is_the_formula(batch, alpha):
    """In float32, as in training, a batch's mean equals the formula to 1e-6 of its size."""
    labels, teacher, student = batch
    found = losses.distillation_loss(
        labels, np.float32(teacher), np.float32(student), temperature=4.0, alpha=alpha
    ).numpy()
    assert found.dtype == np.float32
    assert found.mean() == pytest.approx(formula(labels, teacher, student, 4.0, alpha).mean(), rel=1e-6)


def test_literal_value():
    """One row by hand: teacher (2, 0), student (0, 0), T = 2 gives 4 * (log 2 - H(sigmoid(1)))."""
    p = 1 / (1 + np.exp(-1.0))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    found = losses.soft_loss(np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]]), temperature=2.0)
    assert float(found[0]) == pytest.approx(4 * (np.log(2) - entropy), rel=1e-9)
    assert float(found[0]) == pytest.approx(0.4437763, rel=1e-6)


def test_equal_logits_cost_nothing(batch):
    """Where the student says what the teacher says, the soft part is zero and the rest is the hard part."""
    labels, teacher, _ = batch
    soft = losses.soft_loss(teacher, teacher, temperature=20.0)
    np.testing.assert_allclose(soft, 0.0, atol=1e-12)
    whole = losses.distillation_loss(labels, teacher, teacher, temperature=20.0, alpha=0.1)
    np.testing.assert_allclose(whole, 0.1 * np.asarray(losses.hard_loss(labels, teacher)), rtol=1e-9)


@pytest.mark.parametrize("shift", [-1000.0, 10.0, 1000.0])
def test_shift_of_all_logits_changes_nothing(batch, shift):
    """A constant added to all logits of a row, of either side, leaves the loss as it is."""
    labels, teacher, student = batch
    before = losses.distillation_loss(labels, teacher, student, temperature=4.0, alpha=0.1)
    after = losses.distillation_loss(labels, teacher + shift, student - shift, temperature=4.0, alpha=0.1)
    np.testing.assert_allclose(before, after, rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_large_logits_stay_finite(temperature):
    """Logits of +-100 in float32 give finite losses and gradients, equal to the formula."""
    labels = np.array([0, 1])
    teacher = np.array([[100.0, -100.0, 0.0], [-100.0, 100.0, 0.0]], np.float32)
    student = tf.Variable(-teacher)
    with tf.GradientTape() as tape:
        loss = losses.distillation_loss(labels, teacher, student, temperature=temperature, alpha=0.1)
    gradient = tape.gradient(loss, student).numpy()
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = formula(labels, np.float64(teacher), -np.float64(teacher), temperature, 0.1)
    if np.isfinite(expected).all():
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_gradient_tends_to_logit_matching():
    """For T large and zero-mean logits, the soft gradient is (z_s - z_t) / classes (paper, section 2.1)."""
    draw = np.random.default_rng(3)
    teacher, values = draw.normal(size=(8, 10)), draw.normal(size=(8, 10))
    teacher -= teacher.mean(axis=1, keepdims=True)
    values -= values.mean(axis=1, keepdims=True)
    student = tf.Variable(values)
    with tf.GradientTape() as tape:
        loss = losses.soft_loss(teacher, student, temperature=1e4)
    np.testing.assert_allclose(tape.gradient(loss, student), (values - teacher) / 10, rtol=1e-3, atol=1e-4)


def test_temperature_squared_is_there_at_alpha_0(batch):
    """T^2 does not drop out: the soft gradient keeps its size from T = 50 to T = 500."""
    _, teacher, values = batch
    sizes = []
    for temperature in (50.0, 500.0):
        student = tf.Variable(values)
        with tf.GradientTape() as tape:
            loss = losses.distillation_loss(np.zeros(64, int), teacher, student, temperature=temperature, alpha=0.0)
        sizes.append(float(tf.norm(tape.gradient(loss, student))))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_student_logits_are_tempered(batch):
    """The original left the student's logits as they are; both sides are divided by T."""
    _, teacher, student = batch
    p, q = softmax(teacher / 4), softmax(student)
    wrong = 16 * (p * (np.log(p) - np.log(q))).sum(axis=1)
    assert not np.allclose(losses.soft_loss(teacher, student, temperature=4.0), wrong, rtol=0.01)


def test_roles_are_not_swapped(batch):
    """It is KL(teacher || student), not the reverse."""
    labels, teacher, student = batch
    found = losses.soft_loss(teacher, student, temperature=4.0)
    swapped = formula(labels, student, teacher, 4.0, 0.0)
    assert not np.allclose(found, swapped, rtol=0.01)


def test_agrees_with_keras_where_keras_is_right(batch):
    """Keras's own distillation loss gives the same, if its loss is given explicitly."""
    _, teacher, student = batch
    reference = keras.distillation.LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence())
    expected = float(reference.compute_loss(np.float32(teacher), np.float32(student)))
    found = losses.soft_loss(teacher, student, temperature=4.0)
    assert float(tf.reduce_mean(found)) == pytest.approx(expected, rel=1e-4)
