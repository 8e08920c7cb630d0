"""The objective of classification as a loss for Keras's `compile` and `fit`."""

from __future__ import annotations

from typing import Any

from kdistill.backend import keras, tf
from kdistill.errors import KdistillError
from kdistill.settings import Objective, check_value
from kdistill.soft_targets.keras_dataset import unpack_targets
from kdistill.training.losses.classification import hard_loss, soft_loss
from kdistill.training.losses.objective import weighted

Tensor = Any


@keras.saving.register_keras_serializable("kdistill")
class DistillationLoss(keras.losses.Loss):  # type: ignore[misc]
    """The objective for `Model.compile`, with labels and teacher logits in `y_true` and student logits in `y_pred`.

    `SoftTargets.dataset` yields such a `y_true`, and `pack_targets` returns one. For rows without teacher logits, e.g. in
    `validation_data`, it is `keras.utils.to_categorical(labels, 2 * classes)`: zeros in place of the logits. The loss of
    such rows is the cross-entropy only, as for held-out rows in kdistill's own training.

    Args:
        temperature: T, above 0.
        alpha: weight of the hard labels, from 0 to 1.
        reduction: of any Keras loss; by default the mean over the rows.
        name: of any Keras loss.
        dtype: of any Keras loss; by default float32.

    Raises:
        UsageError: if temperature or alpha is out of range.
        KdistillError: when called, if `y_true` has another shape.
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
        """Return the loss of each row, (rows,)."""
        classes = y_pred.shape[-1]
        if len(y_true.shape) != len(y_pred.shape) or y_true.shape[-1] not in (2 * classes, None):
            raise KdistillError(
                f"y_true has shape {tuple(y_true.shape)}, expected (rows, {2 * classes}) for {classes} logits: use "
                f"SoftTargets.dataset, or without a teacher keras.utils.to_categorical(labels, {2 * classes})"
            )
        labels, teacher_logits = unpack_targets(y_true, classes)
        hard = hard_loss(labels, y_pred)
        soft = soft_loss(teacher_logits, y_pred, temperature=self.temperature)
        has_teacher = tf.reduce_any(teacher_logits != 0, axis=-1)
        return tf.where(has_teacher, weighted(hard, soft, alpha=self.alpha), hard)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras to save."""
        return {**super().get_config(), "temperature": self.temperature, "alpha": self.alpha}
