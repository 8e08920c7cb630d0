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
    """Cross-entropy with the hard labels.

    Args:
        labels: (rows,) whole numbers.
        student_logits: (rows, classes).

    Returns:
        (rows,) in nats.
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=student_logits)


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
