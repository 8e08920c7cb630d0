"""The objective, written once: pure functions of tensors, one value a row; the mean over a batch is the caller's.

    alpha * CE(y, softmax(z_s))  +  (1 - alpha) * T^2 * KL(softmax(z_t / T) || softmax(z_s / T))

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, sections 2 and 2.1. `alpha`
is the weight of the hard labels. T^2 keeps the size of the soft gradients as T changes: they tend to
(z_s - z_t) / classes for zero-mean logits as T grows.

`DistillationLoss` is the same for Keras's `compile` and `fit`.
"""

from __future__ import annotations

from typing import Any

from kdistill.backend import keras, tf
from kdistill.errors import KdistillError
from kdistill.settings import check_alpha, check_temperature

Tensor = Any


def hard_loss(labels: Tensor, student_logits: Tensor) -> Tensor:
    """Cross-entropy with the hard labels, 0 for a row that has none.

    Args:
        labels: (rows,) whole numbers; below 0 for a row that has no hard label.
        student_logits: (rows, classes).

    Returns:
        (rows,) in nats; 0 for rows without a hard label.
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0), logits=student_logits)
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
        self.temperature = check_temperature(temperature)
        self.alpha = check_alpha(alpha)

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
