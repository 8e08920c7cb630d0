"""Losses of multi-label classification: pure functions of tensors that return one value per row.

Everywhere, `labels` are (rows, classes) integers, 0 or 1, or below 0 where a label is missing; logits are (rows, classes);
`temperature` is T, above 0; and a loss is (rows,) in nats.
"""

from __future__ import annotations

from typing import Any

from kdistill.backend import tf
from kdistill.training.losses import classification

Tensor = Any

mse_loss = classification.mse_loss


def hard_loss(labels: Tensor, student_logits: Tensor) -> Tensor:
    """Return the binary cross-entropy of sigmoid(z_s) with the labels, summed over the classes with a label."""
    targets = tf.cast(tf.maximum(labels, 0), student_logits.dtype)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=student_logits)
    return tf.reduce_sum(tf.where(labels >= 0, losses, tf.zeros_like(losses)), axis=-1)


def label_accuracy(labels: Tensor, student_logits: Tensor) -> Tensor:
    """Return the fraction of the classes with a label that is right at a probability of 0.5, (rows,)."""
    known = tf.cast(labels >= 0, tf.float32)
    right = tf.cast((student_logits > 0) == (labels == 1), tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(known * right, axis=-1), tf.reduce_sum(known, axis=-1))


def soft_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * sum over the classes of KL(sigmoid(z_t / T) || sigmoid(z_s / T)), between Bernoulli distributions.

    Hinton, Vinyals and Dean, arXiv:1503.02531, section 2, for each class on its own. For large T the gradient tends to
    (z_s - z_t) / 4.

    Args:
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T, above 0.

    Returns:
        (rows,) in nats.
    """
    teacher, student = teacher_logits / temperature, student_logits / temperature
    positive, negative = tf.sigmoid(teacher), tf.sigmoid(-teacher)
    divergence = positive * (tf.math.log_sigmoid(teacher) - tf.math.log_sigmoid(student)) + negative * (
        tf.math.log_sigmoid(-teacher) - tf.math.log_sigmoid(-student)
    )
    return temperature**2 * tf.reduce_sum(divergence, axis=-1)
