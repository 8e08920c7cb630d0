"""Offline knowledge distillation on TensorFlow and Keras 3.

The stages of the command line as functions, with their settings, and the objective for Keras's own `compile` and
`fit`. Each name is imported when it is first used: TensorFlow comes with those that compute.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than all else here
if TYPE_CHECKING:
    from kdistill.console import Reporter
    from kdistill.data import load as load_dataset
    from kdistill.data.keys import row_keys
    from kdistill.errors import KdistillError
    from kdistill.settings import (
        CorrectBias,
        Evaluate,
        Export,
        Objective,
        Plot,
        Promote,
        ReadOptions,
        Run,
        Selection,
        Soften,
        Status,
        Sweep,
        Training,
        TrainStudent,
        TrainTeacher,
        Verify,
    )
    from kdistill.soft_targets import SoftTargets
    from kdistill.stages.correct_bias import run as correct_bias
    from kdistill.stages.evaluate import run as evaluate
    from kdistill.stages.export import run as export
    from kdistill.stages.plot import run as plot
    from kdistill.stages.promote import run as promote
    from kdistill.stages.run import run
    from kdistill.stages.soften import run as soften
    from kdistill.stages.status import run as status
    from kdistill.stages.sweep import run as sweep
    from kdistill.stages.train_student import run as train_student
    from kdistill.stages.train_teacher import run as train_teacher
    from kdistill.stages.verify import run as verify
    from kdistill.training.losses import DistillationLoss, distillation_loss, hard_loss, soft_loss
    from kdistill.workspace import Workspace

__version__ = "0.1.0"

__all__ = [
    "CorrectBias",
    "DistillationLoss",
    "Evaluate",
    "Export",
    "KdistillError",
    "Objective",
    "Plot",
    "Promote",
    "ReadOptions",
    "Reporter",
    "Run",
    "Selection",
    "SoftTargets",
    "Soften",
    "Status",
    "Sweep",
    "TrainStudent",
    "TrainTeacher",
    "Training",
    "Verify",
    "Workspace",
    "correct_bias",
    "distillation_loss",
    "evaluate",
    "export",
    "hard_loss",
    "load_dataset",
    "plot",
    "promote",
    "row_keys",
    "run",
    "soft_loss",
    "soften",
    "status",
    "sweep",
    "train_student",
    "train_teacher",
    "verify",
]

if not TYPE_CHECKING:  # type checkers read the imports above; this would hide a misspelt name from them
    _HOMES = {
        "console": ("Reporter",),
        "errors": ("KdistillError",),
        "training.losses": ("DistillationLoss", "distillation_loss", "hard_loss", "soft_loss"),
        "data.keys": ("row_keys",),
        "settings": (
            "CorrectBias",
            "Evaluate",
            "Export",
            "Objective",
            "Plot",
            "Promote",
            "ReadOptions",
            "Run",
            "Selection",
            "Soften",
            "Status",
            "Sweep",
            "TrainStudent",
            "TrainTeacher",
            "Training",
            "Verify",
        ),
        "soft_targets": ("SoftTargets",),
        "workspace": ("Workspace",),
    }
    _PLACES = {name: (f"kdistill.{room}", name) for room, names in _HOMES.items() for name in names}
    _PLACES["load_dataset"] = ("kdistill.data", "load")
    for _stage in (
        "correct_bias",
        "evaluate",
        "export",
        "plot",
        "promote",
        "run",
        "soften",
        "status",
        "sweep",
        "train_student",
        "train_teacher",
        "verify",
    ):
        _PLACES[_stage] = (f"kdistill.stages.{_stage}", "run")

    def __getattr__(name: str) -> object:
        if name not in _PLACES:
            raise AttributeError(f"module 'kdistill' has no attribute {name!r}")
        room, own_name = _PLACES[name]
        return getattr(importlib.import_module(room), own_name)

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]
