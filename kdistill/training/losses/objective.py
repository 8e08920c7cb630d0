"""The objective: the hard part and the soft part of the loss of a task, and their weighted sum."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from kdistill.backend import tf
from kdistill.settings import LOSSES, TASKS, Objective
from kdistill.training.losses.classification import hard_loss, soft_loss, standardized

Tensor = Any


def losses_of(task: str) -> ModuleType:
    """Return the module with the losses of a task."""
    return importlib.import_module(f"kdistill.training.losses.{TASKS[task].module}")


def hard_part(task: str, objective: Objective, labels: Tensor, outputs: Tensor) -> Tensor:
    """Return the hard part of an objective, (rows,); 0 for rows without a label, and for tasks without a hard part."""
    if not TASKS[task].hard_part:
        return tf.zeros_like(outputs[:, 0])
    options = {"label_smoothing": objective.label_smoothing} if objective.label_smoothing else {}
    return losses_of(task).hard_loss(labels, outputs, **options)


def soft_part(
    task: str,
    objective: Objective,
    labels: Tensor,
    teacher_outputs: Tensor,
    student_outputs: Tensor,
    *,
    temperature: Tensor,
) -> Tensor:
    """Return the soft part of an objective, (rows,): the loss that it names, of the outputs or their z-scores.

    The temperature is a tensor and not the objective's, so that one compiled step serves every T.
    """
    assert objective.loss is not None
    if objective.standardize_logits:
        teacher_outputs, student_outputs = standardized(teacher_outputs), standardized(student_outputs)
    loss = LOSSES[objective.loss]
    inputs = (labels, teacher_outputs, student_outputs) if loss.labels else (teacher_outputs, student_outputs)
    options = {"temperature": temperature} if loss.temperature else {}
    return getattr(losses_of(task), loss.function)(*inputs, **options)


def weighted(hard: Tensor, soft: Tensor, *, alpha: float) -> Tensor:
    """Return alpha * hard + (1 - alpha) * soft."""
    return alpha * hard + (1.0 - alpha) * soft


def distillation_loss(
    labels: Tensor, teacher_logits: Tensor, student_logits: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """Return the objective: alpha * hard_loss + (1 - alpha) * soft_loss.

    Args:
        labels: (rows,) integers, below 0 for rows without a label.
        teacher_logits: (rows, classes).
        student_logits: (rows, classes).
        temperature: T, above 0.
        alpha: weight of the hard labels, from 0 to 1.

    Returns:
        (rows,) in nats.
    """
    hard = hard_loss(labels, student_logits)
    soft = soft_loss(teacher_logits, student_logits, temperature=temperature)
    return weighted(hard, soft, alpha=alpha)
