"""The objective, written once: pure functions of tensors, one value a row; the mean over a batch is the caller's.

    alpha * CE(y, softmax(z_s))  +  (1 - alpha) * T^2 * KL(softmax(z_t / T) || softmax(z_s / T))

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, sections 2 and 2.1. `alpha`
is the weight of the hard labels. T^2 keeps the size of the soft gradients as T changes: they tend to
(z_s - z_t) / classes for zero-mean logits as T grows.

`settings.LOSSES` lists the losses for the soft part; `soft_part` calls the one that an objective names. `DistillationLoss` is the
objective for Keras's `compile` and `fit`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kdistill.backend import keras, tf
from kdistill.errors import KdistillError
from kdistill.settings import LOSSES, Objective, check_value

Tensor = Any


def hard_loss(labels: Tensor, student_logits: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the hard labels, 0 for a row that has none.

    Smoothed by eps it is that with (1 - eps) * one_hot(label) + eps / classes: Szegedy et al., Rethinking the Inception
    Architecture for Computer Vision, arXiv:1512.00567, section 7.

    Args:
        labels: (rows,) whole numbers; below 0 for a row that has no hard label.
        student_logits: (rows, classes).
        label_smoothing: eps, from 0 to 1.

    Returns:
        (rows,) in nats; 0 for rows without a hard label.
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0), logits=student_logits)
    if label_smoothing:
        of_any_class = -tf.reduce_mean(tf.nn.log_softmax(student_logits), axis=-1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * of_any_class
    return tf.where(labels >= 0, loss, tf.zeros_like(loss))


def soft_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher_logits / T) || softmax(student_logits / T)).

    Args:
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T, above 0.

    Returns:
        (rows,), zero where the logits differ by no more than a constant.
    """
    teacher = tf.nn.log_softmax(teacher_logits / temperature)
    student = tf.nn.log_softmax(student_logits / temperature)
    return temperature**2 * _kl(teacher, student)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis, from the logarithms of both."""
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def reverse_kl_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 * KL(softmax(student_logits / T) || softmax(teacher_logits / T)).

    The student is drawn to where the teacher is sure, and need not cover all that it holds possible: Gu et al., MiniLLM,
    arXiv:2306.08543, section 2.1. Its gradient for T large is `soft_loss`'s.

    Args:
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T, above 0.

    Returns:
        (rows,), zero where the logits differ by no more than a constant.
    """
    return soft_loss(student_logits, teacher_logits, temperature=temperature)


def jsd_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 * (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, p and q the two softmax(logits / T).

    The Jensen-Shannon divergence (Lin, Divergence Measures Based on the Shannon Entropy, 1991), as Agarwal et al. distil
    with it, On-Policy Distillation of Language Models, arXiv:2306.13649, section 2, at beta = 1/2. It is symmetric, and at
    most T^2 * log(2). Its gradient for T large is a quarter of `soft_loss`'s.

    Args:
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T, above 0.

    Returns:
        (rows,), zero where the logits differ by no more than a constant.
    """
    teacher = tf.nn.log_softmax(teacher_logits / temperature)
    student = tf.nn.log_softmax(student_logits / temperature)
    ratio = teacher - student
    of_teacher = tf.exp(teacher) * (math.log(2) - tf.math.softplus(-ratio))  # p * log(p / m)
    of_student = tf.exp(student) * (math.log(2) - tf.math.softplus(ratio))
    return temperature**2 / 2 * tf.reduce_sum(of_teacher + of_student, axis=-1)


def mse_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Half the mean over classes of (student_logits - teacher_logits)^2: logit matching, without a T.

    Ba and Caruana, Do Deep Nets Really Need to be Deep?, arXiv:1312.6184, eq. 1. Halved, its gradient is
    (z_s - z_t) / classes, to which `soft_loss`'s tends as T grows, if logits have zero mean (Hinton et al. 2015, section
    2.1). A constant added to all logits of one side counts here.

    Args:
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).

    Returns:
        (rows,), zero where the logits are equal.
    """
    return tf.reduce_mean(tf.square(student_logits - teacher_logits), axis=-1) / 2


def dkd_loss(
    labels: Tensor,
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float,
    tckd: float = 1.0,
    nckd: float = 8.0,
) -> Tensor:
    """T^2 * (tckd * TCKD + nckd * NCKD), decoupled knowledge distillation.

    Zhao et al., Decoupled Knowledge Distillation, arXiv:2203.08679, section 3. TCKD is the divergence of (p_t, 1 - p_t),
    p_t being the probability of the target class; NCKD is that of the other classes' probabilities divided by 1 - p_t,
    and 0 where there is but one. `soft_loss` is T^2 * (TCKD + (1 - p_t) * NCKD) with the teacher's p_t (eq. 7), so that
    there NCKD counts least where the teacher is surest. The weights, alpha and beta in the paper, are those it has for
    CIFAR-100.

    Args:
        labels: (rows,) whole numbers, the target classes; for a row below 0 it is the teacher's most likely class.
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T, above 0.
        tckd: the weight of TCKD.
        nckd: the weight of NCKD.

    Returns:
        (rows,), zero where the logits differ by no more than a constant.
    """
    teacher_logits, student_logits = tf.convert_to_tensor(teacher_logits), tf.convert_to_tensor(student_logits)
    labels = tf.cast(labels, tf.int32)
    target = tf.where(labels >= 0, labels, tf.argmax(teacher_logits, axis=-1, output_type=tf.int32))
    is_target = tf.one_hot(target, teacher_logits.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    teacher, teacher_others = _decoupled(teacher_logits / temperature, is_target)
    student, student_others = _decoupled(student_logits / temperature, is_target)
    return temperature**2 * (tckd * _kl(teacher, student) + nckd * _kl(teacher_others, student_others))


def _decoupled(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of (p_t, 1 - p_t), (rows, 2), and of the other classes' shares of 1 - p_t, (rows, classes).

    The target's own share is 0, and the logarithm that stands for it finite.
    """
    whole = tf.nn.log_softmax(logits)
    others = tf.where(is_target, whole.dtype.min / 2, whole)
    of_target = tf.reduce_sum(tf.where(is_target, whole, 0.0), axis=-1)
    return tf.stack([of_target, tf.reduce_logsumexp(others, axis=-1)], axis=-1), tf.nn.log_softmax(others)


def dist_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 * ((1 - r_inter) + (1 - r_intra)), r being Pearson's correlation of the two softmax(logits / T).

    Huang et al., Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536, section 4, with beta = gamma = 1 and
    the T^2 of its code: r_inter is over a row's classes, r_intra over a class's rows, and the mean over classes.
    The latter is of the whole batch, and added to each row, so that the mean over the batch is the paper's loss. No
    correlation sees scale or shift. Where the teacher's row or class is constant there is nothing to match, which costs
    nothing; where the student's alone is, r is 0. Neither has a gradient.

    Args:
        teacher_logits: (rows, classes), a whole batch.
        student_logits: (rows, classes).
        temperature: T, above 0.

    Returns:
        (rows,), zero where the logits differ by no more than a constant.
    """
    teacher, student = tf.nn.softmax(teacher_logits / temperature), tf.nn.softmax(student_logits / temperature)
    intra = tf.reduce_mean(_correlation_distance(teacher, student, axis=0))
    return temperature**2 * (_correlation_distance(teacher, student, axis=-1) + intra)


def _correlation_distance(teacher: Tensor, student: Tensor, *, axis: int) -> Tensor:
    """1 - Pearson's r along an axis, as half the mean squared difference of z-scores, which is never below 0."""
    teacher, student = standardized(teacher, axis=axis), standardized(student, axis=axis)
    distance = tf.reduce_mean(tf.square(teacher - student), axis=axis) / 2
    teacher_varies, student_varies = (tf.reduce_any(scores != 0, axis=axis) for scores in (teacher, student))
    return tf.where(teacher_varies, tf.where(student_varies, distance, 1.0), 0.0)


def standardized(logits: Tensor, *, axis: int = -1) -> Tensor:
    """Z-scores of each row's logits: less their mean, divided by their standard deviation, the root of a mean square.

    Sun et al., Logit Standardization in Knowledge Distillation, arXiv:2403.01427, algorithm 1. Put into a loss for the
    logits of both sides, T is in standard deviations: a row's logits are divided by T * sigma, sigma being its own and
    its side's, so that the student matches the order and spacing of the teacher's logits and not their range. A T that
    suits logits as they are is too high by about their sigma; the paper's code runs at 2 for the most part.

    Args:
        logits: (rows, classes).
        axis: along which.

    Returns:
        As `logits`; 0, and without a gradient, where all are equal but for rounding.
    """
    logits = tf.convert_to_tensor(logits)
    shifted = logits - tf.stop_gradient(tf.gather(logits, [0], axis=axis))  # exactly 0 where all are equal
    widest = tf.stop_gradient(tf.reduce_max(tf.abs(shifted), axis=axis, keepdims=True))
    limits = np.finfo(logits.dtype.as_numpy_dtype)
    rounding = 8 * limits.eps * tf.reduce_max(tf.abs(logits), axis=axis, keepdims=True)
    varies = widest > tf.maximum(rounding, limits.tiny)
    shifted = tf.where(varies, shifted / tf.where(varies, widest, 1.0), 0.0)  # no square under- or overflows
    deviations = shifted - tf.reduce_mean(shifted, axis=axis, keepdims=True)
    variance = tf.reduce_mean(tf.square(deviations), axis=axis, keepdims=True)
    return deviations * tf.math.rsqrt(tf.where(varies, variance, 1.0))


def soft_part(
    objective: Objective, labels: Tensor, teacher_logits: Tensor, student_logits: Tensor, *, temperature: Tensor
) -> Tensor:
    """Return the soft part of an objective, by the loss that it names in `settings.LOSSES`.

    Args:
        objective: its `loss` and `standardize_logits` are used.
        labels: (rows,) integers, below 0 for rows without a label.
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T; a tensor, so that one compiled step serves every T.

    Returns:
        (rows,).
    """
    if objective.standardize_logits:
        teacher_logits, student_logits = standardized(teacher_logits), standardized(student_logits)
    loss = LOSSES[objective.loss]
    inputs = (labels, teacher_logits, student_logits) if loss.labels else (teacher_logits, student_logits)
    options = {"temperature": temperature} if loss.temperature else {}
    return globals()[loss.function](*inputs, **options)


def expand_top_k(values: Tensor, top_classes: Tensor, *, classes: int, rest: float) -> Tensor:
    """Logits of all classes from those of the k largest: the rest's mass is shared among its classes alike.

    Args:
        values: (rows, k + 1), the last being the rest's.
        top_classes: (rows, k) int32, which class each of the others is.
        classes: how many there are.
        rest: what to take off the rest's logit for one of its classes, T * log(classes - k).

    Returns:
        (rows, classes).
    """
    rows, k = tf.shape(top_classes)[0], top_classes.shape[1]
    whole = tf.repeat(values[:, k:] - rest, classes, axis=1)
    places = tf.stack([tf.repeat(tf.range(rows)[:, None], k, axis=1), top_classes], axis=-1)
    return tf.tensor_scatter_nd_update(whole, places, values[:, :k])


def weighted(hard: Tensor, soft: Tensor, *, alpha: float) -> Tensor:
    """The two parts put together: `alpha` of the hard one, the rest of the soft one; (rows,) each."""
    return alpha * hard + (1.0 - alpha) * soft


def distillation_loss(
    labels: Tensor, teacher_logits: Tensor, student_logits: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """The whole objective: `alpha * hard_loss + (1 - alpha) * soft_loss`.

    Args:
        labels: (rows,) whole numbers; below 0 for a row that has no hard label.
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T, above 0.
        alpha: the weight of the hard labels, from 0 to 1.

    Returns:
        (rows,).
    """
    hard = hard_loss(labels, student_logits)
    soft = soft_loss(teacher_logits, student_logits, temperature=temperature)
    return weighted(hard, soft, alpha=alpha)


def targets(labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """What `DistillationLoss` takes for `y_true`: one tensor, since Keras takes no more for a model of one output.

    The one-hot labels stand beside the teacher's logits. These are shifted, which no softmax sees, so that the largest
    value of a row is its label's, and Keras's `accuracy` finds it there; rows without a hard label count as wrong.

    Args:
        labels: (rows,) whole numbers; below 0 for a row that has no hard label.
        teacher_logits: (rows, classes) float32.

    Returns:
        (rows, 2 * classes) float32.
    """
    one_hot = tf.one_hot(labels, teacher_logits.shape[-1])
    highest = tf.reduce_max(teacher_logits, axis=-1, keepdims=True)
    return tf.concat([one_hot, teacher_logits - highest + 0.5], axis=-1)


@keras.saving.register_keras_serializable("kdistill")
class DistillationLoss(keras.losses.Loss):  # type: ignore[misc]
    """The objective for `Model.compile`, with the labels and the teacher's logits in `y_true`.

    `y_true` is what `SoftTargets.dataset` yields, or `targets` returns. Rows that no teacher was asked about, such as
    those of `validation_data` may be, have zeros for its logits, `keras.utils.to_categorical(labels, 2 * classes)`;
    their loss is the cross-entropy alone, by which kdistill's stages judge held-out rows too. `y_pred` are the
    student's logits, (rows, classes).

    Args:
        temperature: T, above 0.
        alpha: the weight of the hard labels, from 0 to 1.
        reduction: over rows, as of any Keras loss; the mean unless told otherwise.
        name: as of any Keras loss.
        dtype: as of any Keras loss; computed in float32 unless told otherwise.

    Raises:
        UsageError: if temperature or alpha is out of range.
        KdistillError: when called with a `y_true` of another shape.
    """

    def __init__(
        self,
        temperature: float = 20.0,
        alpha: float = 0.1,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "distillation_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = check_value(Objective, "temperature", temperature)
        self.alpha = check_value(Objective, "alpha", alpha)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss of each row, (rows,)."""
        classes = y_pred.shape[-1]
        if len(y_true.shape) != len(y_pred.shape) or y_true.shape[-1] not in (2 * classes, None):
            raise KdistillError(
                f"y_true has shape {tuple(y_true.shape)} for {classes} logits: DistillationLoss takes what "
                "SoftTargets.dataset yields, or, without a teacher, keras.utils.to_categorical(labels, "
                f"{2 * classes})"
            )
        one_hot, teacher_logits = y_true[..., :classes], y_true[..., classes:]
        labels = tf.where(tf.reduce_any(one_hot > 0, axis=-1), tf.argmax(one_hot, axis=-1), -1)
        hard = hard_loss(labels, y_pred)
        soft = soft_loss(teacher_logits, y_pred, temperature=self.temperature)
        taught = tf.reduce_any(teacher_logits != 0, axis=-1)
        return tf.where(taught, weighted(hard, soft, alpha=self.alpha), hard)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature, "alpha": self.alpha}
