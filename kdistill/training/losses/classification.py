"""Losses of classification: pure functions of tensors that return one value per row. The caller averages over the batch.

The objective of Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, sections 2 and
2.1, for a student with logits z_s and a teacher with logits z_t:

    alpha * CE(y, softmax(z_s)) + (1 - alpha) * T^2 * KL(softmax(z_t / T) || softmax(z_s / T))

T^2 keeps the size of the soft gradients as T changes. For large T and logits with zero mean, they tend to
(z_s - z_t) / classes.

Everywhere, `labels` are (rows,) integers, below 0 for rows without a label; logits are (rows, classes); `temperature` is
T, above 0; and a loss is (rows,) in nats. Soft losses are 0 where student and teacher have the same logits, and except
for `mse_loss` they ignore a constant that is added to all logits of a row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kdistill.backend import tf

Tensor = Any


def hard_loss(labels: Tensor, student_logits: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy with the hard labels: -log softmax(z_s)[label].

    With label smoothing eps, the target is (1 - eps) * one_hot(label) + eps / classes: Szegedy et al., Rethinking the
    Inception Architecture for Computer Vision, arXiv:1512.00567, section 7.

    Args:
        labels: (rows,) integers, below 0 for rows without a label.
        student_logits: (rows, classes).
        label_smoothing: eps, from 0 to 1.

    Returns:
        (rows,) in nats; 0 for rows without a label.
    """
    log_p = tf.nn.log_softmax(student_logits)
    loss = -tf.reduce_sum(tf.where(_is_class(labels, log_p.shape[-1]), log_p, tf.zeros_like(log_p)), axis=-1)
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss - label_smoothing * tf.reduce_mean(log_p, axis=-1)
    return tf.where(labels >= 0, loss, tf.zeros_like(loss))


def _is_class(classes: Tensor, count: int) -> Tensor:
    """Return whether each class is that of the last axis, (..., count) bool.

    Losses select by this and not by `tf.gather`, whose gradient XLA computes row by row on a GPU in deterministic mode.
    """
    return tf.one_hot(classes, count, on_value=True, off_value=False, dtype=tf.bool)


def accuracy(labels: Tensor, student_logits: Tensor) -> Tensor:
    """Return 1.0 for rows whose most likely class is the label and 0.0 for others, (rows,)."""
    return tf.cast(tf.argmax(student_logits, axis=1, output_type=tf.int32) == labels, tf.float32)


def soft_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(z_t / T) || softmax(z_s / T)).

    Args:
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T, above 0.

    Returns:
        (rows,) in nats.
    """
    teacher = tf.nn.log_softmax(teacher_logits / temperature)
    student = tf.nn.log_softmax(student_logits / temperature)
    return temperature**2 * _kl(teacher, student)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last axis, from log p and log q."""
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def reverse_kl_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(z_s / T) || softmax(z_t / T)).

    Gu et al., MiniLLM, arXiv:2306.08543, section 2.1. The student concentrates on classes that are likely for the
    teacher, and need not cover all of them. For large T the gradient is that of `soft_loss`.
    """
    return soft_loss(student_logits, teacher_logits, temperature=temperature)


def jsd_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * (KL(p || m) + KL(q || m)) / 2 for m = (p + q) / 2, p = softmax(z_t / T) and q = softmax(z_s / T).

    The Jensen-Shannon divergence (Lin, Divergence Measures Based on the Shannon Entropy, 1991), used for distillation by
    Agarwal et al., On-Policy Distillation of Language Models, arXiv:2306.13649, section 2, with beta = 1/2. It is
    symmetric and at most T^2 * log(2). For large T the gradient is a quarter of that of `soft_loss`.
    """
    teacher = tf.nn.log_softmax(teacher_logits / temperature)
    student = tf.nn.log_softmax(student_logits / temperature)
    log_ratio = teacher - student
    p_term = tf.exp(teacher) * (math.log(2) - tf.math.softplus(-log_ratio))  # p * log(p / m)
    q_term = tf.exp(student) * (math.log(2) - tf.math.softplus(log_ratio))  # q * log(q / m)
    return temperature**2 / 2 * tf.reduce_sum(p_term + q_term, axis=-1)


def mse_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return mean((z_s - z_t)^2) / 2 over the classes.

    Logit matching: Ba and Caruana, Do Deep Nets Really Need to be Deep?, arXiv:1312.6184, eq. 1. With the factor 1/2, the
    gradient is (z_s - z_t) / classes, which the gradient of `soft_loss` tends to for large T and logits with zero mean.
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
    """Return T^2 * (tckd * TCKD + nckd * NCKD), decoupled knowledge distillation.

    Zhao et al., Decoupled Knowledge Distillation, arXiv:2203.08679, section 3. TCKD is the divergence of (p, 1 - p), where
    p is the probability of the target class, and NCKD is the divergence of the other classes' probabilities divided by
    1 - p. `soft_loss` is T^2 * (TCKD + (1 - p) * NCKD) with the teacher's p (eq. 7), so there NCKD has the least weight
    where the teacher is most confident. The default weights are the paper's alpha and beta for CIFAR-100.

    Args:
        labels: the target classes. For rows without a label, the target is the teacher's most likely class.
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T.
        tckd: weight of TCKD.
        nckd: weight of NCKD.
    """
    teacher_logits, student_logits = tf.convert_to_tensor(teacher_logits), tf.convert_to_tensor(student_logits)
    labels = tf.cast(labels, tf.int32)
    target = tf.where(labels >= 0, labels, tf.argmax(teacher_logits, axis=-1, output_type=tf.int32))
    is_target = _is_class(target, teacher_logits.shape[-1])
    teacher, teacher_others = _decoupled(teacher_logits / temperature, is_target)
    student, student_others = _decoupled(student_logits / temperature, is_target)
    return temperature**2 * (tckd * _kl(teacher, student) + nckd * _kl(teacher_others, student_others))


def _decoupled(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log (p, 1 - p), (rows, 2), and the log of the other classes' probabilities divided by 1 - p, (rows, classes).

    In the latter the target has probability 0, and a finite logarithm instead of -inf.
    """
    log_p = tf.nn.log_softmax(logits)
    others = tf.where(is_target, log_p.dtype.min / 2, log_p)
    log_p_target = tf.reduce_sum(tf.where(is_target, log_p, 0.0), axis=-1)
    return tf.stack([log_p_target, tf.reduce_logsumexp(others, axis=-1)], axis=-1), tf.nn.log_softmax(others)


def dist_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * ((1 - r_inter) + (1 - r_intra)), where r is Pearson's correlation of the two softmax(logits / T).

    Huang et al., Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536, section 4, with beta = gamma = 1, and
    with T^2 as in the paper's code. r_inter is the correlation over the classes of a row. r_intra is the correlation over
    the rows of a class, averaged over the classes of the whole batch and added to each row, so that the mean over the
    batch is the paper's loss. Where the teacher's probabilities are constant the distance is 0. Where only the student's
    are, r is 0. Neither has a gradient.
    """
    teacher, student = tf.nn.softmax(teacher_logits / temperature), tf.nn.softmax(student_logits / temperature)
    intra = tf.reduce_mean(_correlation_distance(teacher, student, axis=0))
    return temperature**2 * (_correlation_distance(teacher, student, axis=-1) + intra)


def _correlation_distance(teacher: Tensor, student: Tensor, *, axis: int) -> Tensor:
    """Return 1 - r along an axis, as half the mean squared difference of z-scores, which is never negative."""
    teacher, student = standardized(teacher, axis=axis), standardized(student, axis=axis)
    distance = tf.reduce_mean(tf.square(teacher - student), axis=axis) / 2
    teacher_varies, student_varies = (tf.reduce_any(scores != 0, axis=axis) for scores in (teacher, student))
    return tf.where(teacher_varies, tf.where(student_varies, distance, 1.0), 0.0)


def standardized(logits: Tensor, *, axis: int = -1) -> Tensor:
    """Return z-scores along an axis: (z - mean) / standard deviation, with the biased variance.

    Sun et al., Logit Standardization in Knowledge Distillation, arXiv:2403.01427, algorithm 1. With z-scores in place of
    logits, the student matches the order and spacing of the teacher's logits and not their range. A temperature that
    suits the logits is too high for z-scores by a factor of about their standard deviation; the paper's code mostly uses
    T = 2.

    Returns:
        As `logits`; 0, without a gradient, where all values are equal up to rounding.
    """
    logits = tf.convert_to_tensor(logits)
    shifted = logits - tf.stop_gradient(tf.gather(logits, [0], axis=axis))  # exactly 0 where all are equal
    widest = tf.stop_gradient(tf.reduce_max(tf.abs(shifted), axis=axis, keepdims=True))
    limits = np.finfo(logits.dtype.as_numpy_dtype)
    rounding = 8 * limits.eps * tf.reduce_max(tf.abs(logits), axis=axis, keepdims=True)
    varies = widest > tf.maximum(rounding, limits.tiny)
    shifted = tf.where(varies, shifted / tf.where(varies, widest, 1.0), 0.0)  # so that no square under- or overflows
    deviations = shifted - tf.reduce_mean(shifted, axis=axis, keepdims=True)
    variance = tf.reduce_mean(tf.square(deviations), axis=axis, keepdims=True)
    return deviations * tf.math.rsqrt(tf.where(varies, variance, 1.0))


def expand_top_k(values: Tensor, top_classes: Tensor, *, classes: int, rest: float, scatter: bool = True) -> Tensor:
    """Return the logits of all classes from the k largest. The classes of the rest share its probability equally.

    Args:
        values: (rows, k + 1), the last being the logit of the rest.
        top_classes: (rows, k) int32, the classes of the others.
        classes: number of classes.
        rest: what to subtract from the logit of the rest for each of its classes, T * log(classes - k).
        scatter: write the logits to their places. Else compare each class with all top classes, as XLA should on a GPU.

    Returns:
        (rows, classes).
    """
    rows, k = tf.shape(top_classes)[0], top_classes.shape[1]
    logits = tf.repeat(values[:, k:] - rest, classes, axis=1)
    if not scatter:
        is_top = _is_class(top_classes, classes)  # (rows, k, classes), which XLA does not keep
        top = tf.reduce_sum(tf.where(is_top, values[:, :k, None], 0.0), axis=1)
        return tf.where(tf.reduce_any(is_top, axis=1), top, logits)
    positions = tf.stack([tf.repeat(tf.range(rows)[:, None], k, axis=1), top_classes], axis=-1)
    return tf.tensor_scatter_nd_update(logits, positions, values[:, :k])
