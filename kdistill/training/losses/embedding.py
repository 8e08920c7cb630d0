"""Losses of embeddings: pure functions of tensors that return one value per row.

Everywhere, vectors are (rows, width), with the width of the teacher's vectors.
"""

from __future__ import annotations

from typing import Any

from kdistill.backend import tf
from kdistill.training.losses import regression

Tensor = Any

mse_loss = regression.mse_loss


def cosine(teacher_vectors: Tensor, student_vectors: Tensor) -> Tensor:
    """Return the cosine of the angle between the two vectors of a row, (rows,), from -1 to 1."""
    return tf.reduce_sum(_unit(teacher_vectors) * _unit(student_vectors), axis=-1)


def cosine_loss(teacher_vectors: Tensor, student_vectors: Tensor) -> Tensor:
    """Return 1 - cosine, (rows,): Sanh et al., DistilBERT, arXiv:1910.01108, section 2."""
    return 1.0 - cosine(teacher_vectors, student_vectors)


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1. A vector of length 0 stays as it is."""
    return tf.math.l2_normalize(vectors, axis=-1)
