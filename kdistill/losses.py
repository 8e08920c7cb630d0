"""The objective, written once: pure functions of tensors, one value a row; the mean over a batch is the caller's.

    alpha * CE(y, softmax(z_s))  +  (1 - alpha) * T^2 * KL(softmax(z_t / T) || softmax(z_s / T))

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, sections 2 and 2.1. `alpha`
is the weight of the hard labels. T^2 keeps the size of the soft gradients as T changes: they tend to
(z_s - z_t) / classes for zero-mean logits as T grows.
"""

from __future__ import annotations

from typing import Any

from kdistill.backend import tf

Tensor = Any


def hard_loss(labels: Tensor, student_logits: Tensor) -> Tensor:
    """Cross-entropy with the hard labels, 0 for a row that has none.

    Args:
        labels: (rows,) whole numbers; a negative one is no label.
        student_logits: (rows, classes).

    Returns:
        (rows,) in nats.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0), logits=student_logits)
    return tf.where(labels < 0, tf.zeros_like(losses), losses)


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
    return temperature**2 * tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1)


def of_all_classes(values: Tensor, top_classes: Tensor, *, classes: int, rest: float) -> Tensor:
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
        labels: (rows,) whole numbers.
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
