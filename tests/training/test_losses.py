"""The objective against its formula, written again in NumPy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from kdistill.backend import keras, tf
from kdistill.settings import Loss
from kdistill.training import losses


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


def divergence(p, q):
    """KL(p || q) of two distributions of one row."""
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def of_row(part, temperature):
    """A loss of one row, of its label and of the two softmax(logits / T), as a loss of all rows."""

    def whole(labels, teacher, student):
        rows = zip(labels, softmax(teacher / temperature), softmax(student / temperature), strict=True)
        return [temperature**2 * part(label, p, q) for label, p, q in rows]

    return whole


def decoupled(label, p, q):
    """TCKD and NCKD of one row, each a divergence of distributions written out."""
    target = p.argmax() if label < 0 else label
    b, c = (np.array([each[target], 1 - each[target]]) for each in (p, q))
    others = [np.delete(each, target) / (1 - each[target]) for each in (p, q)]
    return divergence(b, c), divergence(*others)


def pearson(one, other):
    """The correlation as NumPy has it; 1 where the first is constant, 0 where only the other is: what they cost."""
    if np.ptp(one) == 0:
        return 1.0
    return 0.0 if np.ptp(other) == 0 else np.corrcoef(one, other)[0, 1]


def huang(temperature):
    def whole(_, teacher, student):
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        inter = [1 - pearson(*rows) for rows in zip(p, q, strict=True)]
        intra = np.mean([1 - pearson(*columns) for columns in zip(p.T, q.T, strict=True)])
        return [temperature**2 * (each + intra) for each in inter]

    return whole


def definition(name, temperature):
    """The paper's, of one row where it is such, in float64."""
    return {
        "kd": of_row(lambda _, p, q: divergence(p, q), temperature),
        "mse": lambda _, teacher, student: ((teacher - student) ** 2).sum(axis=1) / (2 * teacher.shape[1]),
        "dkd": of_row(lambda *row: np.dot([1, 8], decoupled(*row)), temperature),
        "dist": huang(temperature),
        "jsd": of_row(
            lambda _, p, q: (divergence(p, (p + q) / 2) + divergence(q, (p + q) / 2)) / 2,
            temperature,
        ),
        "reverse-kl": of_row(lambda _, p, q: divergence(q, p), temperature),
    }[name]


NAMES = get_args(Loss)


def soft_part(name, labels, teacher, student, temperature, *, compiled=False):
    """A soft part and its gradient for the student's logits, of the mean over rows."""

    def both(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = losses.SOFT_PARTS[name].loss(labels, teacher, student, temperature=temperature)
            mean = tf.reduce_mean(loss)
        return loss, tape.gradient(mean, student)

    loss, gradient = tf.function(both, jit_compile=compiled)(tf.constant(student))
    return loss.numpy(), gradient.numpy()


def test_every_loss_has_its_function():
    assert list(losses.SOFT_PARTS) == list(NAMES)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("name", NAMES)
def test_soft_part_is_its_definition(batch, name, temperature):
    """One value a row, in float64, that of the definition; rows without a label too."""
    labels, teacher, student = batch
    labels = np.where(np.arange(64) < 20, -1, labels)
    found, _ = soft_part(name, labels, teacher, student, temperature)
    expected = definition(name, temperature)(labels, teacher, student)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    assert found.shape == (64,)


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


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_slope(batch, name):
    """The gradient is the definition's own slope, by central differences."""
    labels, teacher, student = (each[:8] for each in batch)
    _, gradient = soft_part(name, labels, teacher, student, 4.0)
    whole = definition(name, 4.0)
    for row, column in ((0, 0), (3, labels[3]), (7, 9)):
        step = np.zeros_like(student)
        step[row, column] = 1e-5
        slope = np.mean(whole(labels, teacher, student + step)) - np.mean(whole(labels, teacher, student - step))
        assert gradient[row, column] == pytest.approx(slope / 2e-5, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_equal_logits_cost_nothing_in_any_loss(batch, name):
    """Where the student says what the teacher says, any soft part is 0, and its gradient too; elsewhere it is above."""
    labels, teacher, student = batch
    loss, gradient = soft_part(name, labels, teacher, teacher, 4.0)
    np.testing.assert_allclose(loss, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)
    assert (soft_part(name, labels, teacher, student, 4.0)[0] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_shift_of_all_logits_in_any_loss(batch, name):
    """A constant added to a row's logits changes nothing, but for `mse`, where it counts by half its square."""
    labels, teacher, student = batch
    before, _ = soft_part(name, labels, teacher, student, 4.0)
    after, _ = soft_part(name, labels, teacher + 3.0, student + 3.0, 4.0)
    np.testing.assert_allclose(after, before, rtol=1e-9)
    shifted, _ = soft_part(name, labels, teacher, student + 1000.0, 4.0)
    by_hand = before + 1000 * (student - teacher).mean(axis=1) + 1000**2 / 2 if name == "mse" else before
    np.testing.assert_allclose(shifted, by_hand, rtol=1e-9)


@pytest.mark.parametrize(("name", "part"), [("kd", 1.0), ("reverse-kl", 1.0), ("jsd", 0.25)])
def test_limit_at_high_temperatures_is_logit_matching(batch, name, part):
    """For T large and zero-mean logits, kd's gradient is that of `mse`, exactly (z_s - z_t) / classes; jsd's a quarter."""
    labels, teacher, student = (each - each.mean(axis=-1, keepdims=each.ndim > 1) for each in batch)
    _, matched = soft_part("mse", labels, teacher, student, 1.0)
    np.testing.assert_allclose(matched, (student - teacher) / 10 / 64, rtol=1e-12)
    _, found = soft_part(name, labels, teacher, student, 1e4)
    np.testing.assert_allclose(found, part * matched, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 4.0, 20.0])
def test_kd_is_tckd_and_nckd(batch, temperature):
    """KD = TCKD + (1 - p_t) * NCKD, exactly, with the teacher's p_t (Zhao et al. 2022, eq. 7)."""
    labels, teacher, student = batch
    target, others = (
        losses.dkd_loss(labels, teacher, student, temperature=temperature, tckd=weights[0], nckd=weights[1]).numpy()
        for weights in ((1.0, 0.0), (0.0, 1.0))
    )
    p_target = softmax(teacher / temperature)[np.arange(64), labels]
    kd = losses.soft_loss(teacher, student, temperature=temperature)
    np.testing.assert_allclose(kd, target + (1 - p_target) * others, rtol=1e-9)


def test_dkd_of_two_classes_is_kd(batch):
    """Where there is but one other class, NCKD is 0, and its gradient is none."""
    labels, teacher, student = batch[0] % 2, batch[1][:, :2], batch[2][:, :2]
    loss, gradient = soft_part("dkd", labels, teacher, student, 4.0)
    expected, slope = soft_part("kd", labels, teacher, student, 4.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-7, atol=1e-12)


def test_jsd_is_symmetric_and_bounded(batch):
    labels, teacher, student = batch
    found, _ = soft_part("jsd", labels, teacher, student, 0.5)
    np.testing.assert_allclose(found, soft_part("jsd", labels, student, teacher, 0.5)[0], rtol=1e-9)
    assert found.max() <= 0.25 * np.log(2)
    apart, _ = soft_part("jsd", [0], np.array([[900.0, 0.0]]), np.array([[0.0, 900.0]]), 2.0)
    assert apart == pytest.approx(4 * np.log(2))


def test_dist_sees_no_scale_of_probabilities(batch):
    """A student whose probabilities are the teacher's, drawn towards the uniform, costs nothing: r sees no scale."""
    labels, teacher, _ = batch
    drawn = np.log(0.5 * softmax(teacher) + 0.05)
    np.testing.assert_allclose(soft_part("dist", labels, teacher, drawn, 1.0)[0], 0, atol=1e-12)
    assert soft_part("kd", labels, teacher, drawn, 1.0)[0].mean() > 0.05


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dist_of_what_is_constant(batch, dtype, compiled):
    """Constant rows and columns, on either side, and a batch of one row: the value is by the rule, no NaN anywhere."""
    labels, teacher, student = (np.copy(each) for each in batch)
    teacher[0], student[1] = 1.5, -2.5  # a row of each alike in all classes
    teacher[:, 3] = student[:, 4] = -1e4  # a class of each that no row gives a chance
    teacher, student = dtype(teacher), dtype(student)
    found, gradient = soft_part("dist", labels, teacher, student, 4.0, compiled=compiled)
    expected = definition("dist", 4.0)(labels, np.float64(teacher), np.float64(student))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.isfinite(gradient).all()
    alone, gradient = soft_part("dist", labels[5:6], teacher[5:6], student[5:6], 4.0, compiled=compiled)
    p, q = (softmax(np.float64(each[5:6]) / 4)[0] for each in (teacher, student))
    np.testing.assert_allclose(alone, 16 * (1 - np.corrcoef(p, q)[0, 1]), rtol=1e-4)
    assert np.isfinite(gradient).all()
    alike = np.tile(teacher[5:6], (64, 1))
    _, gradient = soft_part("dist", labels, alike, alike + dtype(1), 4.0, compiled=compiled)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0, 10_000.0])
@pytest.mark.parametrize("name", NAMES)
def test_soft_part_is_stable_in_float32(batch, name, temperature, compiled):
    """From the lowest T to the highest, at logits of +-100 too, nothing overflows, and gradients are float64's."""
    labels, teacher, student = batch
    for scale in (1, 10):
        singles = np.float32(teacher * scale), np.float32(student * scale)
        loss, gradient = soft_part(name, labels, *singles, temperature, compiled=compiled)
        _, expected = soft_part(name, labels, *map(np.float64, singles), temperature)
        assert np.isfinite(loss).all()
        np.testing.assert_allclose(gradient, expected, rtol=0.01, atol=2e-7 + 5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardized_is_the_z_score(batch, dtype):
    """Mean 0 and standard deviation 1 in each row, whatever its shift and scale; 0 where all logits are equal."""
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
    """That of a z-score: it moves neither a row's mean nor its scale."""
    draw = np.random.default_rng(1).normal(size=(64, 10))
    logits = tf.Variable(batch[1])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(losses.standardized(logits) * draw)
    gradient, z = tape.gradient(total, logits).numpy(), np.asarray(losses.standardized(logits))
    expected = draw - draw.mean(axis=1, keepdims=True) - z * (draw * z).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, expected / batch[1].std(axis=1, keepdims=True), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.05, 0.5])
def test_label_smoothing(batch, smoothing):
    """Cross-entropy with (1 - eps) of the label and eps / classes of each; 0 without a label; Keras has the same."""
    labels, _, student = batch
    target = (1 - smoothing) * np.eye(10)[labels] + smoothing / 10
    expected = -(target * np.log(softmax(student))).sum(axis=1)
    found = losses.hard_loss(labels, student, label_smoothing=smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    assert float(tf.reduce_mean(found)) == pytest.approx(float(theirs(np.eye(10)[labels], student)), rel=1e-5)
    unlabelled = np.where(np.arange(64) < 20, -1, labels)
    found = losses.hard_loss(unlabelled, student, label_smoothing=smoothing)
    np.testing.assert_array_equal(found[:20], 0)
    np.testing.assert_allclose(found[20:], expected[20:], rtol=1e-9)
