"""Losses of regression: pure functions of tensors that return one value per row.

Everywhere, `labels` and outputs are (rows, numbers). The training loop divides both by the standard deviations of the
training labels, so a loss has no unit. Labels are NaN where a number is missing.
"""

from __future__ import annotations

from typing import Any

from kdistill.backend import tf

Tensor = Any


def hard_loss(labels: Tensor, student_outputs: Tensor) -> Tensor:
    """Return the squared error, averaged over the numbers of a row that have a label; 0 for rows without one."""
    return _known_mean(labels, tf.square(_errors(labels, student_outputs)))


def absolute_error(labels: Tensor, student_outputs: Tensor) -> Tensor:
    """Return the absolute error, averaged as in `hard_loss`."""
    return _known_mean(labels, tf.abs(_errors(labels, student_outputs)))


def mse_loss(teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
    """Return the squared error of the student to the teacher, averaged over the numbers of a row, (rows,)."""
    return tf.reduce_mean(tf.square(student_outputs - teacher_outputs), axis=-1)


def huber_loss(teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
    """Return the mean over a row of e^2 where |e| <= 1, and 2 |e| - 1 beyond, for the error e of the student to the teacher.

    This is twice the loss of Huber, Robust Estimation of a Location Parameter, doi:10.1214/aoms/1177703732, so that it equals
    `mse_loss` for small errors. Rows on which the teacher is far off have less weight.
    """
    distance = tf.abs(student_outputs - teacher_outputs)
    return tf.reduce_mean(tf.where(distance <= 1, tf.square(distance), 2 * distance - 1), axis=-1)


def _errors(labels: Tensor, student_outputs: Tensor) -> Tensor:
    """Return the errors, 0 where a label is missing: a NaN would make the gradient NaN even where it does not count."""
    missing = tf.math.is_nan(labels)
    return tf.where(
        missing, tf.zeros_like(student_outputs), student_outputs - tf.where(missing, tf.zeros_like(labels), labels)
    )


def _known_mean(labels: Tensor, values: Tensor) -> Tensor:
    known = tf.cast(~tf.math.is_nan(labels), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values, axis=-1), tf.reduce_sum(known, axis=-1))
