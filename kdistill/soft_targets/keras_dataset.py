"""Soft targets for Keras's `fit`: a dataset whose targets hold the hard labels and the teacher's logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import tf
from kdistill.data.keys import row_keys
from kdistill.errors import KdistillError
from kdistill.networks.saved_models import scale_inputs
from kdistill.settings import Training, check_value
from kdistill.soft_targets.alignment import align
from kdistill.soft_targets.file import SoftTargets

Tensor = Any


def pack_targets(labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return labels and logits as one tensor, since Keras takes a single tensor of targets per output.

    The one-hot labels come first, then the teacher's logits. Each row's logits are shifted, which changes no softmax, so
    that the largest value of the row is its label's: this makes Keras's `accuracy` correct. It counts rows without a hard
    label as wrong.

    Args:
        labels: (rows,) integers; below 0 for rows without a hard label.
        teacher_logits: (rows, classes) float32.

    Returns:
        (rows, 2 * classes) float32, as `DistillationLoss` takes it for `y_true`.
    """
    one_hot = tf.one_hot(labels, teacher_logits.shape[-1])
    largest = tf.reduce_max(teacher_logits, axis=-1, keepdims=True)
    return tf.concat([one_hot, teacher_logits - largest + 0.5], axis=-1)


def unpack_targets(targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the labels (rows,), -1 for none, and the shifted logits (rows, classes) of `pack_targets`."""
    one_hot, teacher_logits = targets[..., :classes], targets[..., classes:]
    return tf.where(tf.reduce_any(one_hot > 0, axis=-1), tf.argmax(one_hot, axis=-1), -1), teacher_logits


def keras_dataset(
    soft: SoftTargets, inputs: NDArray[Any], labels: NDArray[np.integer[Any]] | None, batch_size: int, seed: int | None
) -> Any:
    """Return the dataset of `SoftTargets.dataset`, in the given order if the seed is None."""
    check_value(Training, "batch_size", batch_size)
    if not soft.task.categorical:
        raise KdistillError(
            f"{soft.path}: DistillationLoss does not apply to the task {soft.task.name}: train the student with kdistill "
            "train-student"
        )
    known = None if labels is None else np.asarray(labels, np.int64)
    remedy = "pass inputs with the type, shape and values that they have in the transfer set, before any scaling"
    aligned = align(soft, row_keys(np.asarray(inputs)), known, "inputs", remedy)
    known = soft.labels[aligned.positions] if known is None else known
    logits = soft.take(aligned.positions).dense()
    with tf.device("CPU"):
        columns = [tf.convert_to_tensor(column) for column in (inputs, known, logits)]

    def batch(rows: Tensor) -> tuple[Tensor, Tensor]:
        batch_inputs, batch_labels, batch_logits = (tf.gather(column, rows) for column in columns)
        return scale_inputs(batch_inputs), pack_targets(batch_labels, batch_logits)

    order = tf.data.Dataset.range(len(known))
    if seed is not None:
        order = order.shuffle(len(known), seed=seed)
    return order.batch(batch_size).map(batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
