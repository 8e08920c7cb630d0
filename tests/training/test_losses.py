"""The losses against their formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill.backend import keras, tf
from kdistill.settings import CLASSIFICATION, LOSSES, Objective
from kdistill.training import losses as objective
from kdistill.training.losses import classification as losses


def softmax(logits: np.ndarray) -> np.ndarray:
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def formula(labels, teacher, student, temperature, alpha):
    """Return the objective in float64, written as in the module's docstring."""
    p, q, one = softmax(teacher / temperature), softmax(student / temperature), softmax(student)
    soft = (p * (np.log(p) - np.log(q))).sum(axis=1)
    return alpha * -np.log(one[np.arange(len(labels)), labels]) + (1 - alpha) * temperature**2 * soft


@pytest.fixture
def batch():
    draw = np.random.default_rng(7)
    return draw.integers(0, 10, 64), draw.normal(0, 4, (64, 10)), draw.normal(0, 4, (64, 10))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_objective_is_the_formula(batch, temperature, alpha):
    """Every row equals the formula to 1e-6 for any T and alpha."""
    labels, teacher, student = batch
    found = objective.distillation_loss(labels, teacher, student, temperature=temperature, alpha=alpha)
    np.testing.assert_allclose(found, formula(labels, teacher, student, temperature, alpha), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_float32_is_the_formula(batch, alpha):
    """In float32, which training uses, the mean of a batch equals the formula to 1e-6."""
    labels, teacher, student = batch
    found = objective.distillation_loss(
        labels, np.float32(teacher), np.float32(student), temperature=4.0, alpha=alpha
    ).numpy()
    assert found.dtype == np.float32
    assert found.mean() == pytest.approx(formula(labels, teacher, student, 4.0, alpha).mean(), rel=1e-6)


def test_literal_value():
    """For teacher (2, 0), student (0, 0) and T = 2, the loss is 4 * (log 2 - H(sigmoid(1)))."""
    p = 1 / (1 + np.exp(-1.0))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    found = losses.soft_loss(np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]]), temperature=2.0)
    assert float(found[0]) == pytest.approx(4 * (np.log(2) - entropy), rel=1e-9)
    assert float(found[0]) == pytest.approx(0.4437763, rel=1e-6)


def test_soft_loss_of_equal_logits_is_0(batch):
    """Where student and teacher have the same logits, only the hard part is left."""
    labels, teacher, _ = batch
    soft = losses.soft_loss(teacher, teacher, temperature=20.0)
    np.testing.assert_allclose(soft, 0.0, atol=1e-12)
    loss = objective.distillation_loss(labels, teacher, teacher, temperature=20.0, alpha=0.1)
    np.testing.assert_allclose(loss, 0.1 * np.asarray(losses.hard_loss(labels, teacher)), rtol=1e-9)


@pytest.mark.parametrize("shift", [-1000.0, 10.0, 1000.0])
def test_shift_of_all_logits_changes_nothing(batch, shift):
    """A constant that is added to all logits of a row, of either side, does not change the loss."""
    labels, teacher, student = batch
    before = objective.distillation_loss(labels, teacher, student, temperature=4.0, alpha=0.1)
    after = objective.distillation_loss(labels, teacher + shift, student - shift, temperature=4.0, alpha=0.1)
    np.testing.assert_allclose(before, after, rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_large_logits_stay_finite(temperature):
    """For logits of +-100 in float32, losses and gradients are finite, and losses equal the formula."""
    labels = np.array([0, 1])
    teacher = np.array([[100.0, -100.0, 0.0], [-100.0, 100.0, 0.0]], np.float32)
    student = tf.Variable(-teacher)
    with tf.GradientTape() as tape:
        loss = objective.distillation_loss(labels, teacher, student, temperature=temperature, alpha=0.1)
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


def test_temperature_squared_at_alpha_0(batch):
    """With alpha 0 the factor T^2 is kept: the soft gradient has the same size at T = 50 and T = 500."""
    _, teacher, values = batch
    sizes = []
    for temperature in (50.0, 500.0):
        student = tf.Variable(values)
        with tf.GradientTape() as tape:
            loss = objective.distillation_loss(np.zeros(64, int), teacher, student, temperature=temperature, alpha=0.0)
        sizes.append(float(tf.norm(tape.gradient(loss, student))))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_student_logits_are_tempered(batch):
    """Both sides are divided by T, not only the teacher's logits."""
    _, teacher, student = batch
    p, q = softmax(teacher / 4), softmax(student)
    wrong = 16 * (p * (np.log(p) - np.log(q))).sum(axis=1)
    assert not np.allclose(losses.soft_loss(teacher, student, temperature=4.0), wrong, rtol=0.01)


def test_roles_are_not_swapped(batch):
    """The loss is KL(teacher || student), not the reverse."""
    labels, teacher, student = batch
    found = losses.soft_loss(teacher, student, temperature=4.0)
    swapped = formula(labels, student, teacher, 4.0, 0.0)
    assert not np.allclose(found, swapped, rtol=0.01)


def test_agrees_with_keras_where_keras_is_right(batch):
    """Keras's `LogitsDistillation` with KLDivergence gives the same loss; its default loss does not."""
    _, teacher, student = batch
    reference = keras.distillation.LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence())
    expected = float(reference.compute_loss(np.float32(teacher), np.float32(student)))
    found = losses.soft_loss(teacher, student, temperature=4.0)
    assert float(tf.reduce_mean(found)) == pytest.approx(expected, rel=1e-4)


def divergence(p, q):
    """Return KL(p || q) of two distributions."""
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def by_row(loss_of_row, temperature):
    """Return a loss of all rows from a loss of one row, a function of its label and the two softmax(logits / T)."""

    def loss(labels, teacher, student):
        rows = zip(labels, softmax(teacher / temperature), softmax(student / temperature), strict=True)
        return [temperature**2 * loss_of_row(label, p, q) for label, p, q in rows]

    return loss


def decoupled(label, p, q):
    """Return TCKD and NCKD of one row."""
    target = p.argmax() if label < 0 else label
    b, c = (np.array([each[target], 1 - each[target]]) for each in (p, q))
    others = [np.delete(each, target) / (1 - each[target]) for each in (p, q)]
    return divergence(b, c), divergence(*others)


def pearson(one, other):
    """Return NumPy's correlation; 1 where the first is constant, and 0 where only the other is."""
    if np.ptp(one) == 0:
        return 1.0
    return 0.0 if np.ptp(other) == 0 else np.corrcoef(one, other)[0, 1]


def dist(temperature):
    def loss(_, teacher, student):
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        inter = [1 - pearson(*rows) for rows in zip(p, q, strict=True)]
        intra = np.mean([1 - pearson(*columns) for columns in zip(p.T, q.T, strict=True)])
        return [temperature**2 * (each + intra) for each in inter]

    return loss


def definition(name, temperature):
    """Return a loss as its paper defines it, in float64."""
    return {
        "kd": by_row(lambda _, p, q: divergence(p, q), temperature),
        "mse": lambda _, teacher, student: ((teacher - student) ** 2).sum(axis=1) / (2 * teacher.shape[1]),
        "dkd": by_row(lambda *row: np.dot([1, 8], decoupled(*row)), temperature),
        "dist": dist(temperature),
        "jsd": by_row(
            lambda _, p, q: (divergence(p, (p + q) / 2) + divergence(q, (p + q) / 2)) / 2,
            temperature,
        ),
        "reverse-kl": by_row(lambda _, p, q: divergence(q, p), temperature),
    }[name]


NAMES = [name for name, loss in LOSSES.items() if CLASSIFICATION in loss.formulas]


def soft_part(name, labels, teacher, student, temperature, *, compiled=False):
    """Return a soft part, and the gradient of its mean over the rows with respect to the student's logits."""

    def loss_and_gradient(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = objective.soft_part(
                CLASSIFICATION, Objective(loss=name), labels, teacher, student, temperature=temperature
            )
            mean = tf.reduce_mean(loss)
        return loss, tape.gradient(mean, student)

    loss, gradient = tf.function(loss_and_gradient, jit_compile=compiled)(tf.constant(student))
    return loss.numpy(), gradient.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("name", NAMES)
def test_soft_part_is_its_definition(batch, name, temperature):
    """In float64, each row has the value of the definition, also without a label."""
    labels, teacher, student = batch
    labels = np.where(np.arange(64) < 20, -1, labels)
    found, _ = soft_part(name, labels, teacher, student, temperature)
    expected = definition(name, temperature)(labels, teacher, student)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    assert found.shape == (64,)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_soft_part_in_float32(batch, name, compiled):
    """As in training, with XLA and without, a batch's mean is the definition's, and the gradient is float64's."""
    labels, teacher, student = batch
    found, gradient = soft_part(name, labels, np.float32(teacher), np.float32(student), 4.0, compiled=compiled)
    assert found.dtype == gradient.dtype == np.float32
    assert found.mean() == pytest.approx(np.mean(definition(name, 4.0)(labels, teacher, student)), rel=1e-5)
    _, expected = soft_part(name, labels, teacher, student, 4.0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_slope(batch, name):
    """The gradient is the slope of the definition, by central differences."""
    labels, teacher, student = (each[:8] for each in batch)
    _, gradient = soft_part(name, labels, teacher, student, 4.0)
    loss = definition(name, 4.0)
    for row, column in ((0, 0), (3, labels[3]), (7, 9)):
        step = np.zeros_like(student)
        step[row, column] = 1e-5
        slope = np.mean(loss(labels, teacher, student + step)) - np.mean(loss(labels, teacher, student - step))
        assert gradient[row, column] == pytest.approx(slope / 2e-5, rel=1e-4, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_soft_part_of_equal_logits_is_0(batch, name):
    """Where student and teacher have the same logits, loss and gradient are 0; elsewhere the loss is positive."""
    labels, teacher, student = batch
    loss, gradient = soft_part(name, labels, teacher, teacher, 4.0)
    np.testing.assert_allclose(loss, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)
    assert (soft_part(name, labels, teacher, student, 4.0)[0] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_shift_of_all_logits_in_each_loss(batch, name):
    """A constant that is added to the logits of a row changes only `mse`."""
    labels, teacher, student = batch
    before, _ = soft_part(name, labels, teacher, student, 4.0)
    after, _ = soft_part(name, labels, teacher + 3.0, student + 3.0, 4.0)
    np.testing.assert_allclose(after, before, rtol=1e-9)
    shifted, _ = soft_part(name, labels, teacher, student + 1000.0, 4.0)
    expected = before + 1000 * (student - teacher).mean(axis=1) + 1000**2 / 2 if name == "mse" else before
    np.testing.assert_allclose(shifted, expected, rtol=1e-9)


@pytest.mark.parametrize(("name", "part"), [("kd", 1.0), ("reverse-kl", 1.0), ("jsd", 0.25)])
def test_limit_at_high_temperatures_is_logit_matching(batch, name, part):
    """For large T and zero-mean logits, the gradient tends to that of `mse`, (z_s - z_t) / classes; jsd's to a quarter."""
    labels, teacher, student = (each - each.mean(axis=-1, keepdims=each.ndim > 1) for each in batch)
    _, matched = soft_part("mse", labels, teacher, student, 1.0)
    np.testing.assert_allclose(matched, (student - teacher) / 10 / 64, rtol=1e-12)
    _, found = soft_part(name, labels, teacher, student, 1e4)
    np.testing.assert_allclose(found, part * matched, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 4.0, 20.0])
def test_kd_is_tckd_and_nckd(batch, temperature):
    """KD is TCKD + (1 - p_t) * NCKD with the teacher's p_t (Zhao et al. 2022, eq. 7)."""
    labels, teacher, student = batch
    target, others = (
        losses.dkd_loss(labels, teacher, student, temperature=temperature, tckd=weights[0], nckd=weights[1]).numpy()
        for weights in ((1.0, 0.0), (0.0, 1.0))
    )
    p_target = softmax(teacher / temperature)[np.arange(64), labels]
    kd = losses.soft_loss(teacher, student, temperature=temperature)
    np.testing.assert_allclose(kd, target + (1 - p_target) * others, rtol=1e-9)


def test_dkd_of_two_classes_is_kd(batch):
    """With two classes, NCKD and its gradient are 0."""
    labels, teacher, student = batch[0] % 2, batch[1][:, :2], batch[2][:, :2]
    loss, gradient = soft_part("dkd", labels, teacher, student, 4.0)
    expected, slope = soft_part("kd", labels, teacher, student, 4.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-7, atol=1e-12)


def test_jsd_is_symmetric_and_bounded(batch):
    """The bound is T^2 * log(2), which disjoint distributions reach."""
    labels, teacher, student = batch
    found, _ = soft_part("jsd", labels, teacher, student, 0.5)
    np.testing.assert_allclose(found, soft_part("jsd", labels, student, teacher, 0.5)[0], rtol=1e-9)
    assert found.max() <= 0.25 * np.log(2)
    apart, _ = soft_part("jsd", [0], np.array([[900.0, 0.0]]), np.array([[0.0, 900.0]]), 2.0)
    assert apart == pytest.approx(4 * np.log(2))


def test_dist_ignores_the_scale_of_probabilities(batch):
    """The loss is 0 if the student's probabilities are a linear function of the teacher's."""
    labels, teacher, _ = batch
    drawn = np.log(0.5 * softmax(teacher) + 0.05)
    np.testing.assert_allclose(soft_part("dist", labels, teacher, drawn, 1.0)[0], 0, atol=1e-12)
    assert soft_part("kd", labels, teacher, drawn, 1.0)[0].mean() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dist_of_constant_rows_and_classes(batch, dtype, compiled):
    """Rows, classes and batches of one row without variance have the documented distance, and no NaN."""
    labels, teacher, student = (np.copy(each) for each in batch)
    teacher[0], student[1] = 1.5, -2.5  # a row of each that is the same in all classes
    teacher[:, 3] = student[:, 4] = -1e4  # a class of each that has probability 0 in all rows
    teacher, student = dtype(teacher), dtype(student)
    found, gradient = soft_part("dist", labels, teacher, student, 4.0, compiled=compiled)
    expected = definition("dist", 4.0)(labels, np.float64(teacher), np.float64(student))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.isfinite(gradient).all()
    alone, gradient = soft_part("dist", labels[5:6], teacher[5:6], student[5:6], 4.0, compiled=compiled)
    p, q = (softmax(np.float64(each[5:6]) / 4)[0] for each in (teacher, student))
    np.testing.assert_allclose(alone, 16 * (1 - np.corrcoef(p, q)[0, 1]), rtol=1e-4)
    assert np.isfinite(gradient).all()
    equal = np.tile(teacher[5:6], (64, 1))
    _, gradient = soft_part("dist", labels, equal, equal + dtype(1), 4.0, compiled=compiled)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0, 10_000.0])
@pytest.mark.parametrize("name", NAMES)
def test_soft_part_is_stable_in_float32(batch, name, temperature, compiled):
    """From the lowest T to the highest, and for logits of +-100, nothing overflows, and gradients are those of float64."""
    labels, teacher, student = batch
    for scale in (1, 10):
        singles = np.float32(teacher * scale), np.float32(student * scale)
        loss, gradient = soft_part(name, labels, *singles, temperature, compiled=compiled)
        _, expected = soft_part(name, labels, *map(np.float64, singles), temperature)
        assert np.isfinite(loss).all()
        np.testing.assert_allclose(gradient, expected, rtol=0.01, atol=2e-7 + 5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardized_is_the_z_score(batch, dtype):
    """Each row has mean 0 and standard deviation 1 for any shift and scale, and is 0 where all logits are equal."""
    logits = batch[1].astype(dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-9}
    expected = (batch[1] - batch[1].mean(axis=1, keepdims=True)) / batch[1].std(axis=1, keepdims=True)
    for given in (logits, logits * dtype(1e-25), logits * dtype(1e25), logits * dtype(4) + dtype(8)):
        np.testing.assert_allclose(losses.standardized(given), expected, **tolerance)
    for value in (0.0, 0.1, -1000.0, 1e30):
        flat = tf.Variable(np.full((2, 10), value, dtype))
        with tf.GradientTape() as tape:
            scores = losses.standardized(flat)
        np.testing.assert_array_equal(scores, 0)
        np.testing.assert_array_equal(tape.gradient(scores, flat), 0)


def test_standardized_gradient(batch):
    """The gradient is that of a z-score."""
    draw = np.random.default_rng(1).normal(size=(64, 10))
    logits = tf.Variable(batch[1])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(losses.standardized(logits) * draw)
    gradient, z = tape.gradient(total, logits).numpy(), np.asarray(losses.standardized(logits))
    expected = draw - draw.mean(axis=1, keepdims=True) - z * (draw * z).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, expected / batch[1].std(axis=1, keepdims=True), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.05, 0.5])
def test_label_smoothing(batch, smoothing):
    """The loss is the cross-entropy with the smoothed target, as Keras's, and 0 without a label."""
    labels, _, student = batch
    target = (1 - smoothing) * np.eye(10)[labels] + smoothing / 10
    expected = -(target * np.log(softmax(student))).sum(axis=1)
    found = losses.hard_loss(labels, student, label_smoothing=smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    reference = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    assert float(tf.reduce_mean(found)) == pytest.approx(float(reference(np.eye(10)[labels], student)), rel=1e-5)
    unlabeled = np.where(np.arange(64) < 20, -1, labels)
    found = losses.hard_loss(unlabeled, student, label_smoothing=smoothing)
    np.testing.assert_array_equal(found[:20], 0)
    np.testing.assert_allclose(found[20:], expected[20:], rtol=1e-9)
