"""Losses: a module per task with pure functions, and the objective that is made of them.

`settings.LOSSES` names the soft losses and `settings.TASKS` the modules. `DistillationLoss` is for Keras's `compile` and
`fit`.
"""

from kdistill.training.losses.keras_loss import DistillationLoss
from kdistill.training.losses.objective import distillation_loss, hard_part, losses_of, soft_part, weighted

__all__ = ["DistillationLoss", "distillation_loss", "hard_part", "losses_of", "soft_part", "weighted"]
